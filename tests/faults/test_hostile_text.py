"""Values of foreign files in messages: whatever they hold, a terminal or a log shows one readable line."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.inputs.json_entries import entries_of
from data_prep.inputs.sample import EntryFailure
from data_prep.inputs.table_files import files_of_folder
from data_prep.inputs.texts import decoded_record
from megaunigame.data.codes import read_codes
from megaunigame.data.conversation import caption_of, read_conversation
from megaunigame.data.decode import Sample, decode_sample
from megaunigame.data.shards.foreign import check_foreign
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.manifest import parse_manifest
from megaunigame.data.shards.table import parse_table
from megaunigame.errors import DataError, ModelError
from megaunigame.models.weights.loading import check_names
from tests.data.shard_files import write_tar
from tests.faults.hostile_bytes import CONTROLS, showable


def refusal_of(read: Callable[[], object]) -> str:
    with pytest.raises((DataError, EntryFailure)) as refused:
        read()
    return str(refused.value)


def manifest(text: str, **of_shard: object) -> bytes:
    shard = {"file": "a.tar", "samples": 1, "bytes": 1024, "index_sha256": 64 * "0", **of_shard}
    return json.dumps({"version": 1, "fields": [], "shards": [shard]}).encode()


def messages(text: str, folder: Path) -> list[str]:
    """What every reader says about a file with `text` in it."""
    said = []
    shard_values = [
        {name: value} for name in ("file", "samples", "bytes", "index_sha256") for value in (text, [text], {text: 1})
    ]
    shard_values += [{"file": text, "samples": -1}, {"file": f"{text}.tar"}, {"sha256": text}]
    for values in shard_values:
        said.append(refusal_of(lambda values=values: parse_manifest("m", manifest(text, **values))))
    said.append(refusal_of(lambda: parse_manifest("m", json.dumps({"version": text, "fields": [], "shards": []}).encode())))
    one = {"key": "a", "fields": {"json": [0, 1]}}
    for sample in (
        {**one, "fields": {text: [0, 1]}},
        {**one, "fields": {"json": [text, 1]}},
        {**one, "fields": {"json": text}},
        {**one, "columns": {"score": text}},
        {**one, "columns": text},
    ):
        said.append(
            refusal_of(lambda sample=sample: parse_table("i", json.dumps({"version": 1, "samples": [sample]}).encode()))
        )
    said.append(refusal_of(lambda: parse_table("i", json.dumps({"version": text, "samples": []}).encode())))
    for talk in ([text], [{"from": text, "value": "x"}], [{"from": "human", "value": [{"type": text}]}], [{text: text}]):
        said.append(refusal_of(lambda talk=talk: read_conversation(talk, 0)))
    said.append(refusal_of(lambda: caption_of(Sample("a", {"caption": [text]}))))
    said.append(refusal_of(lambda: decode_sample("a", {text: b""})))
    for head in (
        {"tokenizer": "t", "codebook": text, "grids": []},
        {"tokenizer": "t", "codebook": 2, "grids": [[text, 1, 1, 1, 1]]},
    ):
        said.append(refusal_of(lambda head=head: read_codes("a", "codes.bin", json.dumps(head).encode() + b"\n")))
    said.append(refusal_of(lambda: check_foreign("here", 1, {text: 1})))
    said.append(refusal_of(lambda: entries_of(json.dumps({text: 1, "b": 2}).encode(), folder / "a.json", (), "entries")))
    said.append(refusal_of(lambda: decoded_record(text.encode("utf-8", "replace"), Counter())))
    return said


@pytest.mark.fault(
    "names and values with controls of a terminal, line breaks, or 100,000 characters, in manifests, indices and samples",
    does="shows them with escapes, in one line of bounded length",
    lost="nothing",
)
@pytest.mark.parametrize("text", [*CONTROLS, "\x1b[2Jx\n" * 20_000], ids=range(1 + len(CONTROLS)))
def test_messages_show_values_in_one_readable_line(text, tmp_path):
    for said in messages(text, tmp_path):
        assert showable(said) and len(said) < 2_000, repr(said[:500])


@pytest.mark.parametrize("name", ["a\x1b[2J.tar", "a\nb.tar", "\u202etar.tar"])
def test_a_tar_with_such_a_name_is_refused(tmp_path, name):
    """Its name would stand in every message about its samples."""
    write_tar(tmp_path / name, [("a.json", b"{}")])
    said = refusal_of(lambda: ShardIndex.open(tmp_path))
    assert showable(said) and said.endswith("which cannot be shown. Rename it.")


def test_a_command_to_copy_holds_nothing_for_a_shell(tmp_path):
    """The advice to take one of several lists names a key of the file."""
    lists = {"x'\"]' ; touch y #": [{"a": 1}], "b": [{"a": 1}]}
    said = refusal_of(lambda: entries_of(json.dumps(lists).encode(), tmp_path / "a.json", (), "entries"))
    assert """jq '.["NAME"]' """ in said and said.endswith("> NAME.json")
    lists = {"it's": [{"a": 1}], "b": [{"a": 1}]}
    said = refusal_of(lambda: entries_of(json.dumps(lists).encode(), tmp_path / "a.json", (), "entries"))
    assert """jq '.["it'"'"'s"]' """ in said


def test_names_of_weights_are_shown_in_one_readable_line():
    for text in (*CONTROLS, "x" * 100_000):
        with pytest.raises(ModelError) as refused:
            check_names(["w"], ["w", text], "The checkpoint")
        assert showable(str(refused.value)) and len(str(refused.value)) < 2_000


@pytest.mark.parametrize("folder", ["a'; touch ran #", "a$(touch ran)"])
def test_names_of_folders_are_quoted_in_a_command(tmp_path, folder):
    for name in (folder, "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.parquet").write_bytes(b"")
    said = refusal_of(lambda: files_of_folder(tmp_path, ".parquet", None))
    command = said.rpartition("Give one of the folders: ")[2].rpartition(", or all files")[0]
    assert shlex.split(command) == ["--source", str(tmp_path / folder)]
