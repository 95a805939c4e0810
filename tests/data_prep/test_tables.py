"""Hugging Face folders: parquet of the hub, arrow of `save_to_disk`; columns in the forms that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.inputs.messages import turns_of
from data_prep.inputs.sample import EntryFailure
from megaunigame.data.conversation import read_conversation
from megaunigame.errors import DataError
from tests.data_prep.stored import failures_of, records_of, samples_of
from tests.data_prep.toy_sets import TALK, TEXT, picture

MESSAGES = [{"role": "user", "content": "<image>\nwhat ?"}, {"role": "assistant", "content": "that"}]


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": picture(n), "path": f"{n}.jpg"} if n % 4 else None, "text": f"words {n}"}
        for n in range(first, first + count)
    ]


def write_arrow(file: Path, table: list[dict[str, Any]], batch: int = 3, stream: bool = True) -> str:
    """As the `datasets` library writes it: the stream format, in batches."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = pa.Table.from_pylist(table)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(file), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=batch)
    return file.name


def save_to_disk(folder: Path, *tables: list[dict[str, Any]], stream: bool = True) -> Path:
    names = [f"data-{k:05d}-of-{len(tables):05d}.arrow" for k in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_arrow(folder / name, table, stream=stream)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": "train"}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def pack(form: str, source: Path | str, out: Path, *more: str) -> int:
    return main(["pack", "--format", form, "--source", str(source), "--out", str(out), *more])


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_rows_are_cut_across_files_and_batches(stream, tmp_path, forked):
    source = save_to_disk(tmp_path / "in", rows(0, 10), rows(10, 7), stream=stream)
    assert pack("arrow", source, tmp_path / "out", "--shard-size", "5", "--workers", "2") == 0
    found = samples_of(tmp_path / "out")
    assert list(found) == [f"{n:08d}" for n in range(17)]
    for number, fields in enumerate(found.values()):
        assert json.loads(fields["json"])["caption"] == f"words {number}"
        assert fields.get("jpg") == (picture(number) if number % 4 else None)
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_of_several_splits_one_must_be_named(tmp_path, refusal):
    for split, first in (("train", 0), ("test", 5)):
        save_to_disk(tmp_path / "saved" / split, rows(first, 3))
        for place in ("data", "named"):
            file = tmp_path / place / ("data" if place == "data" else split) / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows(first, 3)), file)
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    for form, name in (("arrow", "saved"), ("parquet", "data"), ("parquet", "named")):
        said = refusal(pack(form, tmp_path / name, tmp_path / "x"))
        assert "has several splits; there are" in said and said.endswith("Type --split train or another\n")
        assert "has no split val; there are" in refusal(pack(form, tmp_path / name, tmp_path / "x", "--split", "val"))
        assert pack(form, tmp_path / name, tmp_path / f"{name}-out", "--split", "test") == 0
        assert [record["caption"] for record in records_of(tmp_path / f"{name}-out")] == ["words 5", "words 6", "words 7"]


def test_one_split_and_plain_files_need_no_option(tmp_path):
    for name in ("a/0000.parquet", "b/train-00000-of-00001.parquet", "c/data/x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows(1, 2)), tmp_path / name)
        folder = tmp_path / name.split("/")[0]
        assert pack("parquet", folder, tmp_path / f"out-{folder.name}") == 0


@pytest.mark.parametrize(
    ("names", "words", "more", "packed"),
    [
        (["data/sft-{}", "data/test-{}"], "several splits; there are sft, test. Type --split sft or", ["--split", "sft"], 0),
        (["train_sft-{}", "train_gen-{}"], "there are train_gen, train_sft. Type", ["--split", "train_sft"], 0),
        (["x-train-{}-0a9b8c7d", "x-val-{}-0a9b8c7d"], "there are x-train, x-val", ["--split", "train"], 0),
        (["more.x", "test.x"], "the split test next to 1 files without one, such as more.parquet", ["--split", "test"], 1),
        (["sft/0000.x", "test/0000.x"], "the split test next to 1 files without one", ["--split", "test"], 1),
        (["mine-eval-1.x", "mine-2.x"], "the split eval next to 1 files", ["--split", "eval"], 0),
        (["val2017.x", "train2017.x"], "several splits; there are train, val", ["--split", "val"], 0),
    ],
)
def test_no_split_is_packed_with_another(names, words, more, packed, tmp_path, refusal):
    folder = write_tables(tmp_path / "in", names)
    said = refusal(pack("parquet", folder, tmp_path / "out"))
    assert words in said
    assert pack("parquet", folder, tmp_path / "out", *more) == 0
    assert [record["caption"] for record in records_of(tmp_path / "out")] == [f"words {packed}"]


def test_a_word_that_several_splits_have_names_none(tmp_path, refusal):
    folder = write_tables(tmp_path / "in", ["train_sft-{}", "train_gen-{}"])
    said = refusal(pack("parquet", folder, tmp_path / "out", "--split", "train"))
    assert "has several splits train; there are train_gen, train_sft. Type --split train_gen or another" in said


def test_no_data_set_is_packed_with_another(tmp_path, refusal):
    folder = write_tables(tmp_path / "in", ["a/train-{}", "b/train-{}"])
    assert f"several data sets; there are a, b. Give one of the folders: --source {folder / 'a'}" in (
        refusal(pack("parquet", folder, tmp_path / "out"))
    )
    assert pack("parquet", folder / "b", tmp_path / "b") == 0 and len(records_of(tmp_path / "b")) == 1
    assert pack("parquet", f"{folder}/*/*.parquet", tmp_path / "both") == 0 and len(records_of(tmp_path / "both")) == 2
    hub = write_tables(tmp_path / "hub", ["test.x", "data/train-{}"])
    assert "files in it and others in data/. Give one: --source" in refusal(pack("parquet", hub, tmp_path / "out"))
    assert pack("parquet", hub / "data", tmp_path / "hub-out") == 0 and len(records_of(tmp_path / "hub-out")) == 1
    parts = write_tables(tmp_path / "parts", ["part-0/0.x", "part-1/0.x"])
    assert pack("parquet", parts, tmp_path / "all") == 0 and len(records_of(tmp_path / "all")) == 2


def write_tables(folder: Path, names: list[str]) -> Path:
    """A parquet file of one row per name; {} stands for the numbers of the hub."""
    for number, name in enumerate(names):
        file = folder / (name.removesuffix(".x").format("00000-of-00001") + ".parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{"image": {"bytes": picture(number)}, "text": f"words {number}"}]), file)
    return folder


@pytest.mark.parametrize("form", ["saved", "cut", "no list", "text"])
def test_arrow_folders_that_are_not_whole_are_named(form, tmp_path, refusal):
    folder = save_to_disk(tmp_path / "in", rows(0, 4), rows(4, 4))
    second = folder / "data-00001-of-00002.arrow"
    if form == "saved":
        second.unlink()
        words = "data-00001-of-00002.arrow, which state.json lists, is missing"
    elif form == "cut":
        second.write_bytes(second.read_bytes()[:3000])
        words = "data-00001-of-00002.arrow: not a readable Arrow file"
    elif form == "no list":
        (folder / "state.json").write_text("{}")
        words = "state.json: is not what save_to_disk writes"
    else:
        second.write_text("no table")
        words = "data-00001-of-00002.arrow: not a readable Arrow file"
    said = refusal(pack("arrow", folder, tmp_path / "out"))
    assert words in said and "Traceback" not in said


@pytest.mark.parametrize(
    "talk",
    [
        TALK,
        json.dumps(TALK),
        MESSAGES,
        json.dumps(MESSAGES),
        {"role": ["user", "assistant"], "content": ["<image>\nwhat ?", "that"]},
        [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what ?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "that"}]},
        ],
    ],
)
def test_forms_of_conversations(talk, tmp_path):
    assert read_conversation(turns_of(talk), 1).turns(1) == TALK
    source = save_to_disk(tmp_path / "in", [{"images": [{"bytes": picture(1), "path": None}], "messages": talk}])
    assert pack("arrow", source, tmp_path / "out") == 0
    assert records_of(tmp_path / "out") == [{"conversations": TALK, "width": 20, "height": 12}]


def test_lists_of_turns_of_different_lengths_are_a_failure():
    with pytest.raises(EntryFailure, match=r"lists of different lengths \(2 from, 1 value\)"):
        turns_of({"from": ["human", "gpt"], "value": ["q"]})


def test_parts_of_messages_that_are_neither_text_nor_image():
    with pytest.raises(DataError, match="neither a text nor an image"):
        read_conversation(turns_of([{"role": "user", "content": [{"type": "audio"}]}]), 0)
    with pytest.raises(EntryFailure, match="not JSON"):
        turns_of("[" * 100_000)


def test_pictures_in_cells(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.jpg").write_bytes(picture(1))
    (root / "a" / "2.jpg").write_bytes(picture(2))
    (tmp_path / "secret.jpg").write_bytes(picture(9))
    cells = [
        [str(root / "a/1.jpg")],
        ["a/1.jpg", "a/2.jpg"],
        [],
        None,
        ["../secret.jpg"],
        [str(tmp_path / "secret.jpg")],
        ["a/3.jpg"],
    ]
    source = save_to_disk(tmp_path / "in", [{"images": cell, "conversations": TEXT} for cell in cells])
    assert pack("arrow", source, tmp_path / "out", "--image-root", str(root), "--max-failed-fraction", "0.5") == 0
    assert [fields.get("jpg") for fields in samples_of(tmp_path / "out").values()] == [picture(1), picture(1), None, None]
    assert [fields.get("picture2.jpg") for fields in samples_of(tmp_path / "out").values()] == [None, picture(2), None, None]
    reasons = [failure["reason"] for failure in failures_of(tmp_path / "out")]
    assert [reason.split(" ")[-1] for reason in reasons] == ["root", "root", "a/3.jpg"]
    assert pack("arrow", source, tmp_path / "none", "--max-failed-fraction", "0.9") == 0
    assert "or type --image-root" in failures_of(tmp_path / "none")[0]["reason"]


def test_a_path_in_a_cell_is_not_the_picture_of_another_version(tmp_path):
    (tmp_path / "root").mkdir()
    for number, name in enumerate(["v1.png", "v1.5.png"]):
        (tmp_path / "root" / name).write_bytes(picture(number, form="png"))
    source = save_to_disk(tmp_path / "in", [{"image": "v1.5", "text": "a"}])
    assert pack("arrow", source, tmp_path / "out", "--image-root", str(tmp_path / "root")) == 0
    assert [fields["png"] for fields in samples_of(tmp_path / "out").values()] == [picture(1, form="png")]
