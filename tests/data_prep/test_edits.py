"""Packing of edits: the tables of BAGEL's editing data, JSON files, tars of other tools; and what `verify` says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.verify import check_sample
from megaunigame.data.decode import Sample, decode_sample
from megaunigame.data.edits import edits_of
from megaunigame.errors import DataError
from tests.data.shard_files import write_tar
from tests.data_prep.stored import failures_of, samples_of
from tests.data_prep.toy_sets import TALK, picture

CHAIN = [["make it red", "paint it red"], ["now at night"]]


def packed(folder: Path) -> list[Sample]:
    return [decode_sample(key, fields) for key, fields in samples_of(folder).items()]


def test_tables_of_the_release(tmp_path):
    """`image_list` and `instruction_list`, as its example of editing data has them, found without an option."""
    rows = [
        {"image_list": [picture(n) for n in range(3)], "instruction_list": CHAIN},
        {"image_list": [picture(4), picture(5)], "instruction_list": [["now at night"]]},
        {"image_list": [picture(6)], "instruction_list": [["now at night"]]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "edits.parquet")
    given = ["pack", "--format", "parquet", "--source", str(tmp_path / "edits.parquet"), "--out", str(tmp_path / "out")]
    assert main([*given, "--max-failed-fraction", "0.5"]) == 0
    samples = packed(tmp_path / "out")
    assert [sample.image_count for sample in samples] == [3, 2]
    assert [edit.target for edit in edits_of(samples[0])] == [1, 2] and len(edits_of(samples[0])[0].wordings) == 2
    assert "has 1 picture(s) and 1 edit(s), which have places for 2" in failures_of(tmp_path / "out")[0]["reason"]
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_json_files_and_tars(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    entry = {"image": [f"{n}.jpg" for n in range(3)], "edits": ["<image><image> the hat of the second"]}
    (tmp_path / "edits.json").write_text(json.dumps([entry, {**entry, "conversations": TALK, "edits": None}]))
    given = ["--json", str(tmp_path / "edits.json"), "--image-root", str(tmp_path), "--out", str(tmp_path / "llava")]
    assert main(["pack", "--format", "llava-json", *given]) == 0
    edited, talked = packed(tmp_path / "llava")
    assert edits_of(edited)[0].wordings == ((0, 1, "the hat of the second"),) and edits_of(talked) == ()
    fields = {**{f"{name}.jpg": picture(n) for n, name in enumerate("abc")}, "json": json.dumps({"edits": CHAIN}).encode()}
    write_tar(tmp_path / "of_others.tar", [(f"000.{field}", data) for field, data in fields.items()])
    source = ["--source", str(tmp_path / "of_others.tar"), "--out", str(tmp_path / "wds")]
    assert main(["pack", "--format", "wds", *source]) == 0
    (sample,) = packed(tmp_path / "wds")
    assert sample.image_count == 3 and len(edits_of(sample)) == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [(("edited.png", "input.png"), "edited.png, input.png"), (("1.png", "2.png"), ""), (("png", "picture2.png"), "")],
)
def test_the_order_of_pictures_in_a_tar_is_said(tmp_path, capsys, names, said):
    """By name, `edited` comes before `input`, and a model would learn to undo edits."""
    fields = {**{name: picture(n) for n, name in enumerate(names)}, "json": b'{"edits": ["make it red"]}'}
    write_tar(tmp_path / "edits.tar", [(f"000.{field}", data) for field, data in fields.items()])
    given = ["--source", str(tmp_path / "edits.tar"), "--out", str(tmp_path / "out")]
    assert main(["pack", "--format", "wds", *given]) == 0
    noted = f"1 x pictures of edits in the order of their names, {said}: rename them" in capsys.readouterr().out
    assert noted == bool(said) and packed(tmp_path / "out")[0].image_count == 2


def test_edits_of_other_pictures_are_a_fault():
    image = decode_sample("k", {"jpg": picture(0), "json": b"{}"}).image
    check_sample(Sample("k", {"edits": ["red"]}, image=image, further=[image]))
    with pytest.raises(DataError, match="sample 'k': has 1 picture"):
        check_sample(Sample("k", {"edits": ["red"]}, image=image))
