"""LLaVA JSON in the forms in which it exists: all are packed, verified, counted and read by training in the same way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.__main__ import main
from data_prep.inputs.llava_json import _entry as read_entry
from data_prep.inputs.picture_names import find_file
from data_prep.statistics import read_manifest
from megaunigame.data.conversation import question_answers
from megaunigame.data.decode import Sample, decode_sample
from megaunigame.objectives.understanding import Understanding
from tests.data.shard_files import talk, write_tar
from tests.data_prep.stored import failures_of, records_of, samples_of
from tests.data_prep.toy_sets import TALK, TEXT, pack_tars, picture

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
ENTRY = {"id": 0, "image": "a.jpg", "conversations": TALK}
MESSAGES = [{"role": "user", "content": "<image>what ?"}, {"role": "assistant", "content": "that"}]
PARTS = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "what ?"}]


@pytest.fixture
def root(tmp_path) -> Path:
    for number, name in enumerate(["a.jpg", "b.jpg", "my c.jpg", "sub/d.jpg", "e%20.jpg"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return tmp_path / "images"


def packed(root: Path, content: bytes | str | list, *more: str, name: str = "out") -> Path:
    file, out = root.parent / "data.json", root.parent / name
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    command = ["pack", "--format", "llava-json", "--json", str(file), "--image-root", str(root), "--out", str(out), *more]
    assert main(command) == 0
    assert main(["verify", str(out)]) == 0
    assert main(["stats", str(out)]) == 0
    return out


def read(folder: Path) -> list[Sample]:
    return [decode_sample(key, fields).decoded() for key, fields in samples_of(folder).items()]


LINES = "\n".join(json.dumps({**ENTRY, "id": n}, ensure_ascii=False) for n in range(3))
FILES = {
    "lines": LINES,
    "lines with ends of other systems": "\ufeff" + LINES.replace("\n", "\r\n\r\n") + "\r\n",
    "lines in utf-16": LINES.encode("utf-16"),
    "lines with a separator inside": LINES.replace("that", "that\u2028\u0085there"),
    "list in utf-16": json.dumps([ENTRY] * 3).encode("utf-16"),
    "list with a mark": json.dumps([ENTRY] * 3).encode("utf-8-sig"),
    "list in lists": [[ENTRY], [[ENTRY, ENTRY]]],
    "object with a list": {"version": "1", "data": [ENTRY] * 3},  # type: ignore[dict-item]
    "object per entry": {str(n): ENTRY for n in range(3)},  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", FILES)
def test_forms_of_the_file(case, root):
    samples = read(packed(root, FILES[case]))
    assert len(samples) == 3
    assert all(question_answers(sample)[0][0] == "what ?" and sample.image_count == 1 for sample in samples)


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"caption": ""}, {}),
        ({"caption": " "}, {}),
        ({"caption": ["a", "b"]}, {"caption": "a", "captions": ["a", "b"]}),
        ({"caption": "a\0b"}, {"caption": "ab"}),
        ({"text": "a question"}, {"text": "a question"}),
        ({"answers": ["yes", "yeah"]}, {}),
        ({"answers": ["yes"]}, {}),
        ({"answers": [["yes"]], "kinds": ["other"]}, {"answers": [["yes"]], "kinds": ["other"]}),
        ({"answers": []}, {}),
        ({"answers": "yes"}, {"answers": "yes"}),
    ],
)
def test_what_stands_next_to_a_conversation(more, kept, root):
    (record,) = records_of(out := packed(root, [ENTRY | more]))
    assert record == {"id": 0, "conversations": TALK, "width": 20, "height": 12} | kept
    assert ("per question: left out" in str(read_manifest(out)["notes"])) is (not kept and "caption" not in more)


def test_a_version_in_a_name_is_not_an_ending(root):
    for number, name in enumerate(["v1.png", "v1.5.png", "v2.5.jpg.png", "v3.png"]):
        (root / name).write_bytes(picture(number, form="png"))
    assert find_file(root, "v1.5") == root / "v1.5.png" and find_file(root, "v1.jpg") == root / "v1.png"
    assert find_file(root, "v2.5.jpg") == root / "v2.5.jpg.png"
    assert find_file(root, "v3.5") is None and find_file(root, "v1.6") is None


def test_one_line_is_one_entry_and_a_broken_line_one_failure(root):
    assert len(read(packed(root, json.dumps(ENTRY)))) == 1
    out = packed(root, LINES + '\n{"id": 3, "image":\n', "--max-failed-fraction", "0.25", name="broken")
    assert len(samples_of(out)) == 3
    (failure,) = failures_of(out)
    assert failure["key"] == "00000003" and failure["reason"].startswith("line 4 is not JSON: Expecting value")


def test_bytes_that_are_not_utf_8_cost_their_entry(root):
    out = packed(root, LINES.encode().replace(b"that", b"th\xe4t", 1), "--max-failed-fraction", "0.4")
    assert len(samples_of(out)) == 2
    assert failures_of(out)[0]["reason"] == "text that is not Unicode"


NAMES = ["a.jpg", "/a.jpg", "./sub/../a.jpg", "sub\\d.jpg", "my%20c.jpg", "my c.jpg", "e%20.jpg", "file:///a.jpg", "a.png"]


@pytest.mark.parametrize("name", [*NAMES, {"path": "a.jpg"}, ["a.jpg"], ["a.jpg", None]])
def test_forms_of_a_picture(name, root):
    (sample,) = read(packed(root, [{**ENTRY, "image": name}]))
    assert sample.image_count == 1
    (sample,) = read(packed(root, [{"images": name, "messages": MESSAGES}], name="messages"))
    assert sample.image_count == 1 and question_answers(sample) == [("what ?", "that")]


def test_an_absolute_name_below_the_root(root):
    (sample,) = read(packed(root, [{**ENTRY, "image": str(root / "sub" / "d.jpg")}]))
    assert sample.image_count == 1


@pytest.mark.parametrize("none", [None, "", [], [""], [None]])
def test_no_picture_is_text_only(none, root):
    (sample,) = read(packed(root, [{"image": none, "conversations": TEXT}]))
    assert sample.image is None and question_answers(sample) == [("what ?", "that")]


def test_texts_alone_need_no_folder(root):
    out = root.parent / "texts"
    (root.parent / "t.json").write_text(json.dumps([{"conversations": TEXT}]))
    command = ["pack", "--format", "llava-json", "--json", str(root.parent / "t.json"), "--out", str(out)]
    assert main([*command, "--image-root", str(root / "gone")]) == 0
    assert len(samples_of(out)) == 1


def test_pictures_named_in_the_turns(root):
    said = [{"role": "user", "content": [*PARTS, {"type": "image_url", "image_url": {"url": "b.jpg"}}]}, MESSAGES[1]]
    (sample,) = read(packed(root, [{"messages": said}]))
    assert sample.image_count == 2 and question_answers(sample) == [("what ?", "that")]


def test_several_pictures_reach_a_row_in_their_order(root):
    names = ["b.jpg", "sub/d.jpg", "a.jpg"]
    said = talk(("is it in <image> ?", "yes"), ("and <image> or\n<image>", "no"))
    out = packed(root, [{"image": names, "conversations": said}])
    ((key, fields),) = samples_of(out).items()
    assert set(fields) == {"jpg", "picture2.jpg", "picture3.jpg", "json"}
    assert json.loads(fields["json"])["conversations"][0]["value"] == "<image>\n<image>\n<image>\nis it in  ?"
    row = Understanding(Understanding.Config()).row(None, decode_sample(key, fields), np.random.default_rng(0))
    alone = [decode_sample("x", {"json": b"{}", "jpg": (root / name).read_bytes()}).image for name in names]
    assert len(row.images) == 3 and all(torch.equal(a, b) for a, b in zip(row.images, alone, strict=True))
    assert row.turns == [("is it in  ?", "yes"), ("and  or", "no")]


def test_a_further_picture_that_is_damaged_is_a_failure(root):
    (root / "bad.jpg").write_bytes(picture(0)[:200])
    entries = [ENTRY, {**ENTRY, "image": ["a.jpg", "bad.jpg"]}]
    out = packed(root, entries, "--max-failed-fraction", "0.5")
    assert failures_of(out)[0]["image"] == "a.jpg, bad.jpg" and "damaged" in failures_of(out)[0]["reason"]


def test_further_pictures_are_stored_by_the_rules_of_the_first(root):
    """Laid on the ground; and too many pixels are a failure, whichever picture has them."""
    Image.new("RGBA", (20, 12), (0, 0, 0, 0)).save(root / "clear.png")
    out = packed(root, [{**ENTRY, "image": ["a.jpg", "clear.png"]}])
    (sample,) = read(out)
    assert (sample.images[1] == 255).all()
    Image.new("RGB", (40, 40)).save(root / "large.png")
    entries = [ENTRY, {**ENTRY, "image": ["a.jpg", "large.png"]}]
    packed(root, entries, "--max-pixels", "1000", "--max-failed-fraction", "0.5", name="small")
    assert failures_of(root.parent / "small")[0]["image"] == "a.jpg, large.png"


def test_more_than_nine_pictures_keep_their_order():
    fields = {f"picture{n}.jpg": picture(n) for n in (10, 2, 11, 3)} | {"jpg": picture(1), "json": b"{}"}
    images = decode_sample("k", fields).images
    alone = [decode_sample("x", {"json": b"{}", "jpg": picture(n)}).image for n in (1, 2, 3, 10, 11)]
    assert all(torch.equal(a, b) for a, b in zip(images, alone, strict=True))


def test_our_own_shards_are_packed_again_with_all_pictures(root):
    out = packed(root, [{**ENTRY, "image": ["a.jpg", "b.jpg"]}])
    members = [(f"{key}.{field}", data) for key, fields in samples_of(out).items() for field, data in fields.items()]
    write_tar(root.parent / "again" / "0.tar", members)
    assert pack_tars(str(root.parent / "again"), root.parent / "twice") == 0
    first, second = samples_of(out), samples_of(root.parent / "twice")
    assert list(first) == list(second) and records_of(out) == records_of(root.parent / "twice")
    for key, fields in first.items():
        assert {**second[key], "json": b""} == {**fields, "json": b""}


def test_numbers_that_json_lacks_are_null(root):
    out = packed(root, LINES.replace('{"id"', '{"score": NaN, "size": 1e999, "id"'))
    assert all(b"NaN" not in fields["json"] and b"Infinity" not in fields["json"] for fields in samples_of(out).values())
    assert records_of(out)[0]["score"] is None


def test_what_was_left_out_is_counted(root, capsys):
    entries = [{"conversations": [TEXT[1], *TEXT, TEXT[0]]}] * 3
    packed(root, entries)
    assert "3 x answer before the first question" in capsys.readouterr().out


def test_messages_and_several_pictures_of_a_table(tmp_path):
    parts = [[{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what ?"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "that"}]}]] * 2  # fmt: skip
    pictures = [
        [{"bytes": picture(0), "path": "a.jpg"}],
        [{"bytes": picture(1), "path": None}, {"bytes": picture(2), "path": None}],
    ]
    pq.write_table(pa.table({"images": pictures, "messages": parts}), tmp_path / "a.parquet")
    assert main(["pack", "--format", "parquet", "--source", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")]) == 0
    samples = read(tmp_path / "out")
    assert [sample.image_count for sample in samples] == [1, 2]
    assert all(question_answers(sample) == [("what ?", "that")] for sample in samples)


FAILS = {"json_empty_answer": 1, "json_surrogate": 1, "json_url_image": 1, "json_backslash_path": 1, "json_percent_space": 1}


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.glob("json_*")) or ["none"])
def test_cases(case, tmp_path):
    """The cases that lie next to the repository: packed but for entries that really lack something."""
    folder = CASES / case
    if not folder.is_dir():
        pytest.skip("no cases next to the repository")
    out = tmp_path / "out"
    command = ["pack", "--format", "llava-json", "--json", str(folder / "data.json"), "--image-root", str(folder / "images")]
    assert main([*command, "--out", str(out), "--max-failed-fraction", "1"]) == 0
    assert len(failures_of(out) if (out / "failures.jsonl").exists() else []) == FAILS.get(case, 0)
    assert main(["verify", str(out)]) == 0
    assert all(question_answers(sample) for sample in read(out))


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["<image>", "a.jpg", "human", "user", "gpt", "system", "image", "text", "image_url", "\0", "../..", "a\\b", "%", "%zz"]
    )
)
KEY = st.sampled_from(
    [
        "image",
        "images",
        "conversations",
        "messages",
        "caption",
        "from",
        "value",
        "role",
        "content",
        "type",
        "text",
        "id",
        "path",
    ]
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEY, inner, max_size=4), max_leaves=25
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEY, ANYTHING, max_size=5) | ANYTHING)
def test_no_entry_ends_the_reading(found):
    """Whatever an entry is: it is read, or a failure with a reason; and its pictures are found or not."""
    entry = read_entry(3, found)
    assert entry.key.startswith("00000003") and bool(entry.problem) != bool(entry.record)
    assert all(find_file(Path("/nowhere"), name) is None for name in entry.images)
