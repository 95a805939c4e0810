"""Fuzzers of everything that is read from others: typed errors or bad samples only, in bounded memory and time.

The ordinary suite runs FEW inputs of each kind; `make test-faults` runs MANY. Each test counts the inputs that it has really
given to readers, and fails below its part of IN_ALL.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import resource
import struct
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data_prep.inputs.llava_json import LlavaJson
from data_prep.inputs.sample import EntryFailure
from data_prep.inputs.tar_members import FIRST, LAST, tar_samples
from data_prep.inputs.texts import decoded_record, decoded_text
from data_prep.inputs.wds import Tars
from data_prep.statistics import read_manifest
from megaunigame.attention.targets import read_targets
from megaunigame.config import load_recipe
from megaunigame.data.codes import read_codes
from megaunigame.data.conversation import caption_of, question_answers, read_conversation
from megaunigame.data.decode import decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.manifest import parse_manifest
from megaunigame.data.shards.table import parse_table, scan_table
from megaunigame.data.shards.unfinished import check_finished
from megaunigame.errors import DataError, ModelError, UserError
from megaunigame.models.weights.settings_files import read_settings, read_tokenizer
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.pictures.header import header_of
from megaunigame.pictures.pillow import changes_of
from megaunigame.pictures.reading import read_picture
from megaunigame.pictures.rules import PictureError, PictureRules
from tests.data.picture_files import every_container, file_of, photo, tagged
from tests.data.shard_files import sample_fields
from tests.faults.hostile_bytes import changed, damaged, values

FEW, MANY, IN_ALL = 15, 420, 5_000
SECONDS, BYTES = 5.0, 1.5e9
"""Bounds of one input: of processor time, and of the memory the process may grow by (decoders keep some)."""
RULES = PictureRules(max_pixels=100_000)
"""Small, so that a header that says too much is met often."""
ran: Counter[str] = Counter()

fast = settings(max_examples=FEW, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
whole = settings(fast, max_examples=MANY, derandomize=False, phases=[Phase.generate, Phase.shrink])


@contextmanager
def bounded(kind: str, *legal: type[Exception]):
    """Only errors of these types come out, with a text that can be shown; within time and memory."""
    ran[kind] += 1
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except legal as error:
        assert str(error) and len(str(error)) < 20_000, error
        str(error).encode("utf-8", "surrogatepass")
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < BYTES / 1024


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """Valid files, the containers that training data has more often than others."""
    turned = file_of(photo(), "JPEG", exif=tagged(6))
    usual = [file_of(photo(mode), form) for form, mode in (("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "P"), ("WEBP", "RGB"))]
    return (*usual * 4, turned, *every_container().values())


@functools.cache
def tars() -> tuple[bytes, ...]:
    """Small tars in the three formats, with long names, links and extended headers."""
    made = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, data in (
                ("a.json", b'{"caption": "x"}'),
                ("a.png", b"x" * 40),
                ("d" * 70 + "/" + "b" * 60 + ".json", b"{}"),
            ):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), 1.5
                tar.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("l.json")
            link.type, link.linkname = tarfile.SYMTYPE, "a.json"
            tar.addfile(link)
            end = tar.offset
        made.append(out.getvalue()[:end] + bytes(1024))
    return tuple(made)


MANIFEST: dict[str, Any] = {
    **{"version": 1, "name": "a", "samples": 2, "fields": ["json", "png"], "config": {}, "config_hash": "x", "notes": {"n": 1}},
    "shards": [{"file": "a-0.tar", "samples": 2, "bytes": 2048, "index_sha256": 64 * "0", "sha256": 64 * "1"}],
}
INDEX: dict[str, Any] = {
    "version": 1,
    "samples": [
        {"key": f"k{n}", "fields": {"json": [512 * n, 9], "png": [512 * n + 512, 7]}, "columns": {"score": n}} for n in range(3)
    ],
}
TALK = [
    {"from": "system", "value": "S"},
    {"from": "human", "value": "<image>\nQ"},
    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    {"user": "Q", "assistant": "A"},
]
RECIPE = {
    "model": {"family": "janus", "path": "somewhere", "max_length": 64},
    "data": {"s": {"shards": "somewhere", "window": 2}},
    "objectives": {"understanding": {"weight": 1.0}},
}
TARGETS = {
    "depth": 4,
    "generate": [{"layers": [0, 1], "delta": 0.1, "target": 0.5}, {"layers": [2, 3], "delta": 1, "target": 0}],
}


def texts(valid: Any) -> st.SearchStrategy[bytes]:
    """JSON that is nearly `valid`: its values changed, or its bytes."""
    content = json.dumps(valid).encode()
    return (
        changed(valid).map(lambda value: json.dumps(value).encode())
        | damaged(content)
        | values().map(lambda value: json.dumps(value).encode())
    )


def fuzz_manifest(folder: Path, content: bytes) -> None:
    with bounded("manifest", DataError):
        for shard in parse_manifest("dataset.json", content).shards:
            assert (folder / shard.file).parent == folder and shard.file.endswith(".tar") and 0 <= shard.samples <= 2**40
    for file in folder.iterdir():
        file.unlink()
    (folder / "dataset.json").write_bytes(content)
    with bounded("manifest of a folder", DataError):
        ShardIndex.open(folder)
    with bounded("manifest for data_prep", DataError):
        read_manifest(folder)
    (folder / "dataset.json").rename(folder / "unfinished.json")
    with bounded("note of unfinished work", DataError):
        check_finished(folder)


def fuzz_index(folder: Path, content: bytes) -> None:
    with bounded("index", DataError):
        table = parse_table("a.idx.json", content)
        for i in range(len(table)):
            assert table.key(i).isprintable() or " " in repr(table.key(i))
            assert all(0 <= offset and 0 <= size for offset, size in table.spans_of(i).values())
    (folder / "a.tar").write_bytes(tars()[0])
    (folder / "a.idx.json").write_bytes(content)
    with bounded("index of a folder", DataError, OSError):
        index = ShardIndex.open(folder)
        for i in range(min(3, index.samples)):
            decode_sample(*index.read(0, i)).decoded()


def fuzz_tar(folder: Path, content: bytes) -> None:
    tar = folder / "a.tar"
    tar.write_bytes(content)
    with bounded("tar", DataError):
        table = scan_table(tar)
        assert table.end() <= len(content)
    for dots in (FIRST, LAST):
        with bounded("foreign tar", DataError, EntryFailure):
            for sample in tar_samples(tar, dots, Counter()):
                sample.spans()
                assert not sample.key.startswith("/") and ".." not in sample.key.split("/") and len(sample.key.encode()) <= 90


def fuzz_pack(folder: Path, content: bytes) -> None:
    tar = folder / "a.tar"
    tar.write_bytes(content)
    with bounded("pack of a tar", DataError):
        shard = Tars((tar,), None, rules=RULES).shard(0)
        for sample in shard.samples:
            decode_sample("a", {name: data for name, data in sample.items() if name != "__key__"}, RULES).decoded()
    assert all(failure["reason"] for failure in shard.failures)


def fuzz_sample(folder: Path, content: bytes) -> None:
    fields = {**sample_fields(0), "json": content}
    with bounded("json of a sample", DataError):
        sample = decode_sample("a", fields)
        json.dumps(sample.meta, ensure_ascii=False).encode()
        caption_of(sample)
        for question, answer in question_answers(sample):
            f"{question}{answer}".encode()
    with bounded("json of a foreign sample", EntryFailure):
        decoded_record(content, Counter())
    with bounded("text of a foreign sample", EntryFailure):
        decoded_text(content, Counter())


def fuzz_conversation(folder: Path, conversation: Any) -> None:
    for count in (0, 1, 3):
        with bounded("conversation", DataError):
            assert read_conversation(conversation, count).pairs


def fuzz_picture(folder: Path, content: bytes) -> None:
    with bounded("picture", PictureError):
        pixels = read_picture(content, RULES)
        assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3 and pixels[0].numel() <= RULES.max_pixels
    with bounded("picture header", PictureError):
        header_of(content)
        changes_of(content, RULES)
    for field in ("depth.png", "seg.png"):
        with bounded("map", DataError):
            decode_sample("a", {"json": b"{}", field: content}, RULES).decoded()


def fuzz_codes(folder: Path, content: bytes) -> None:
    with bounded("codes", DataError):
        assert all(grid.min() >= 0 for grid in read_codes("a", "codes.bin", content).grids.values())


def fuzz_llava(folder: Path, content: bytes) -> None:
    file = folder / "a.json"
    file.write_bytes(content)
    with bounded("llava json", DataError):
        options = argparse.Namespace(json=file, image_root=folder, shard_size=10)
        source = LlavaJson.from_arguments(options)
        source.absent()
        for number in range(source.shards):
            list(source.shard(number).samples)


def fuzz_recipe(folder: Path, content: bytes) -> None:
    file = folder / "recipe.yaml"
    file.write_bytes(content)
    with bounded("recipe", UserError):
        load_recipe(str(file), [])
    with bounded("targets of layers", UserError):
        read_targets(file, 4)


def fuzz_settings(folder: Path, content: bytes) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        (folder / name).write_bytes(content)
    with bounded("settings of a model", ModelError):
        read_settings(folder / "config.json")
    with bounded("tokenizer", ModelError):
        read_tokenizer(folder)
    with bounded("index of weights", ModelError):
        assert all(file.parent == folder for file in TensorFiles.of_folder(folder).files)


def fuzz_weights(folder: Path, content: bytes, suffix: str) -> None:
    (folder / f"a{suffix}").write_bytes(content)
    with bounded("weights", ModelError):
        files = TensorFiles([folder / f"a{suffix}"])
        for key in files.index:
            assert files.read(key).nbytes <= len(content)


@functools.cache
def stored_weights() -> tuple[bytes, bytes]:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    out = io.BytesIO()
    torch.save(tensors, out)
    return safetensors.torch.save(tensors), out.getvalue()


CODES = b'{"codebook": 48, "grids": [["crop", 24, 1, 2, 2]], "tokenizer": "t"}\n' + struct.pack("<4H", 1, 2, 3, 47)
LLAVA = [{"id": 1, "image": "a.png", "conversations": TALK[1:2] + [{"from": "gpt", "value": "A"}]}, {"id": "b", "caption": "x"}]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{"id": 2, "content": "<s>", "special": True}],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"},
}

FUZZERS: dict[str, tuple[Callable[..., None], Callable[[], st.SearchStrategy[tuple]]]] = {
    "manifest": (fuzz_manifest, lambda: st.tuples(texts(MANIFEST))),
    "index": (fuzz_index, lambda: st.tuples(texts(INDEX))),
    "tar": (fuzz_tar, lambda: st.tuples(st.sampled_from(tars()).flatmap(lambda tar: damaged(tar, tars())))),
    "pack": (fuzz_pack, lambda: st.tuples(st.sampled_from(tars()).flatmap(lambda tar: damaged(tar, pictures())))),
    "sample": (fuzz_sample, lambda: st.tuples(texts({"conversations": TALK, "caption": "C", "objects": [{"id": 1}]}))),
    "conversation": (fuzz_conversation, lambda: st.tuples(changed(TALK) | values())),
    "picture": (fuzz_picture, lambda: st.tuples(st.sampled_from(pictures()).flatmap(lambda p: damaged(p, pictures())))),
    "picture head": (
        fuzz_picture,
        lambda: st.tuples(st.sampled_from(pictures()).flatmap(lambda p: damaged(p[:64]).map(lambda head: head + p[64:]))),
    ),
    "codes": (fuzz_codes, lambda: st.tuples(damaged(CODES))),
    "llava": (fuzz_llava, lambda: st.tuples(texts(LLAVA))),
    "recipe": (fuzz_recipe, lambda: st.tuples(texts(RECIPE) | texts(TARGETS))),
    "settings": (fuzz_settings, lambda: st.tuples(texts(TOKENIZER) | texts({"weight_map": {"a": "b.safetensors"}}))),
    "safetensors": (fuzz_weights, lambda: st.tuples(damaged(stored_weights()[0]), st.just(".safetensors"))),
    "pytorch file": (fuzz_weights, lambda: st.tuples(damaged(stored_weights()[1]), st.just(".bin"))),
}


def share(in_all: int) -> int:
    """Inputs that every fuzzer has to run so that all together run `in_all`."""
    return -(-in_all // len(FUZZERS))


def run(kind: str, folder: Path, amount: settings, least: int) -> int:
    """The number of inputs that readers were really given; fails below `least`."""
    check, inputs = FUZZERS[kind]
    executed = 0

    @amount
    @given(inputs())
    def each(arguments: tuple) -> None:
        nonlocal executed
        before = ran.total()
        check(folder, *arguments)
        assert ran.total() > before, "a fuzzer that gives its input to no reader"
        executed += 1

    each()
    assert executed >= least, f"{kind}: only {executed} inputs were run, {least} are wanted"
    return executed


@pytest.mark.fault(
    "files of every kind, damaged at random", does="refuses them by name, or counts bad samples", lost="the sample"
)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FUZZERS)
def test_some_hostile_inputs(kind, tmp_path):
    run(kind, tmp_path, fast, FEW)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", FUZZERS)
def test_many_hostile_inputs(kind, tmp_path):
    run(kind, tmp_path, whole, share(IN_ALL))


def test_inputs_are_counted_when_they_are_run(tmp_path, monkeypatch):
    """Neither what is written down nor what hypothesis leaves out: an exhausted strategy, or a fuzzer that reads nothing."""
    given_to_readers = []

    def read(folder: Path, number: int) -> None:
        with bounded("counted"):
            given_to_readers.append(number)

    def inputs(largest: int) -> Callable[[], st.SearchStrategy[tuple]]:
        return lambda: st.tuples(st.integers(0, largest))

    monkeypatch.setitem(FUZZERS, "counted", (read, inputs(10**9)))
    assert run("counted", tmp_path, whole, share(IN_ALL)) == len(given_to_readers) >= share(IN_ALL)
    assert share(IN_ALL) * len(FUZZERS) >= IN_ALL
    monkeypatch.setitem(FUZZERS, "counted", (read, inputs(3)))
    with pytest.raises(AssertionError, match="counted: only 4 inputs were run"):
        run("counted", tmp_path, whole, share(IN_ALL))
    monkeypatch.setitem(FUZZERS, "counted", (lambda folder, number: None, inputs(10**9)))
    with pytest.raises(AssertionError, match="gives its input to no reader"):
        run("counted", tmp_path, fast, FEW)
