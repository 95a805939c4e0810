"""Tars as they exist in the wild: no sample is lost, and no picture or field left out, without a word."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from data_prep.__main__ import main
from data_prep.inputs.sample import LONGEST_KEY, EntryFailure
from data_prep.inputs.tar_fields import begins_as_picture, refuse_several, roles_of
from data_prep.inputs.tar_members import FIRST, LAST, split_name, stored_key
from data_prep.inputs.texts import decoded_text, with_caption
from data_prep.statistics import read_manifest
from megaunigame.data.decode import CODES_FIELD
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import DataError
from tests.data.shard_files import talk, write_shards, write_tar
from tests.data_prep.stored import failures_of, records_of, samples_of
from tests.data_prep.toy_sets import TALK, pack_tars, picture

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
JPG, OTHER = picture(1), picture(2)


@pytest.fixture
def packs(tmp_path, capsys):
    """Members of one tar, options -> what packing them said; all but failures must go well."""

    def pack(members: list[tuple[str, bytes]], *more: str) -> str:
        write_tar(tmp_path / "in" / "0.tar", members)
        assert pack_tars(str(tmp_path / "in"), tmp_path / "out", *more) == 0
        assert main(["verify", str(tmp_path / "out")]) == 0
        return capsys.readouterr().out

    return pack


def captions(folder: Path) -> dict[str, str]:
    return {key: json.loads(fields["json"])["caption"] for key, fields in samples_of(folder).items()}


def notes(folder: Path) -> dict[str, int]:
    found: dict[str, int] = read_manifest(folder)["notes"]
    return found


# --- names

VASES = [("vase_v1.5.jpg", JPG), ("vase_v1.5.txt", b"5"), ("vase_v1.jpg", OTHER), ("vase_v1.txt", b"1")]
VASES += [("vase_v2.jpg", JPG), ("vase_v2.txt", b"2")]


def test_samples_whose_names_have_dots_are_failures_that_name_the_option(tmp_path, refusal):
    write_tar(tmp_path / "in" / "0.tar", VASES)
    assert "1 of 2 entries failed (is 2 samples whose names have dots" in (
        said := refusal(pack_tars(str(tmp_path / "in"), tmp_path / "out"))
    )
    assert "fields 5.jpg, 5.txt, jpg, txt" in said and "Type --dots last" in said


def test_dots_last_keeps_every_sample(tmp_path, packs):
    packs(VASES, "--dots", "last")
    assert captions(tmp_path / "out") == {"vase_v1_5": "5", "vase_v1": "1", "vase_v2": "2"}


def test_dots_last_keeps_targets_and_keys_apart(tmp_path, packs):
    target = {name: io.BytesIO() for name in ("depth", "seg")}
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(target["depth"], "png")
    Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(target["seg"], "png")
    members = [(f"a.1.{name}.png", file.getvalue()) for name, file in target.items()]
    packs([("a.1.jpg", JPG), ("a.1.txt", b"x"), *members, ("a_1.jpg", OTHER), ("a_1.txt", b"y")], "--dots", "last")
    assert captions(tmp_path / "out") == {"a_1": "x", "a_1-2": "y"}
    assert {"depth.png", "seg.png"} <= samples_of(tmp_path / "out")["a_1"].keys()


@pytest.mark.parametrize("dots", ["first", "last"])
def test_codes_are_left_out_and_counted(tmp_path, packs, dots):
    members = [(f"{key}.{field}", data) for key in "ab" for field, data in (("jpg", JPG), ("txt", b"x"), ("codes.bin", b"{}"))]
    said = packs(members, "--dots", dots)
    assert captions(tmp_path / "out") == {"a": "x", "b": "x"}
    assert all(CODES_FIELD not in fields for fields in samples_of(tmp_path / "out").values())
    assert "2 x field 'codes.bin': not used; make it from the packed pictures: annotate --tasks codes" in said


def test_dots_first_typed_means_fields_of_one_sample(tmp_path, packs):
    said = packs(VASES, "--dots", "first")
    assert captions(tmp_path / "out") == {"vase_v1": "1", "vase_v2": "2"}
    assert "1 x further picture '5.jpg': not used; if names of samples have dots, type --dots last" in said
    assert "1 x field '5.txt': not used" in said
    assert main(["stats", str(tmp_path / "out")]) == 0


def test_stats_repeat_what_was_left_out(tmp_path, packs, capsys):
    packs([("a.jpg", JPG), ("a.txt", b"x"), ("a.cls", b"7")])
    assert main(["stats", str(tmp_path / "out")]) == 0
    assert "1 x field 'cls': not used" in capsys.readouterr().out


def test_fields_with_a_dot_of_one_sample(tmp_path, packs):
    packs(
        [
            ("1.image.jpg", JPG),
            ("1.caption.txt", b"a cube"),
            ("2.meta.json", b'{"caption": "a ball"}'),
            ("2.img.png", picture(3, form="png")),
        ]
    )
    assert captions(tmp_path / "out") == {"1": "a cube", "2": "a ball"}
    assert [len(fields) for fields in samples_of(tmp_path / "out").values()] == [2, 2]


def test_names_that_lead_out_of_the_folder(tmp_path, packs):
    members = [("/data/x/1", b"1"), ("../2", b"2"), ("./3", b"3"), ("a/../../4", b"4"), ("..\\5", b"5"), ("C:\\x\\6", b"6")]
    said = packs([(f"{name}.{end}", data) for name, text in members for end, data in (("jpg", JPG), ("txt", text))])
    assert list(captions(tmp_path / "out")) == ["data/x/1", "2", "3", "a/4", "5", "C_/x/6"]
    assert "4 x absolute name, or one with `..`" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_hidden_files_links_and_files_without_an_ending_are_counted(tmp_path, packs):
    tar = tmp_path / "in" / "1.tar"
    write_tar(tar, [])
    with tarfile.open(tar, "w") as archive:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../secret"
            archive.addfile(member)
    junk = [
        ("._1.jpg", b"mac"),
        ("__MACOSX/._1.txt", b"mac"),
        ("__MACOSX/1.txt", b"mac"),
        (".DS_Store", b"mac"),
        ("README", b"x"),
    ]
    packs([*junk, ("1.jpg", JPG), ("1.txt", b"a cube")])
    assert captions(tmp_path / "out") == {"1": "a cube"}
    counted = notes(tmp_path / "out")
    assert [
        counted[next(note for note in counted if note.startswith(word))] for word in ("hidden", "file w", "link", "source")
    ] == [4, 1, 1, 1]


def test_keys_that_repeat_are_all_kept(tmp_path, packs):
    both = [("1.jpg", JPG), ("1.txt", b"a"), ("2.jpg", JPG), ("2.txt", b"b"), ("1.jpg", OTHER), ("1.txt", b"c")]
    said = packs(both)
    assert captions(tmp_path / "out") == {"1": "a", "1-2": "c", "2": "b"}
    assert samples_of(tmp_path / "out")["1-2"]["jpg"] == OTHER
    assert "1 x sample under a key that an earlier one has" in said


def test_keys_that_repeat_with_other_fields_are_a_failure(tmp_path, packs):
    packs([("1.jpg", JPG), ("1.jpg", OTHER), ("1.txt", b"c"), ("2.txt", b"b")], "--max-failed-fraction", "0.5")
    assert captions(tmp_path / "out") == {"2": "b"}
    assert failures_of(tmp_path / "out")[0]["reason"].startswith("has jpg 2 times, txt 1 times under one name")


def test_files_of_a_sample_need_not_be_adjacent(tmp_path, packs):
    packs([("a.txt", b"a"), ("b.txt", b"b"), ("b.jpg", OTHER), ("a.jpg", JPG)])
    assert captions(tmp_path / "out") == {"a": "a", "b": "b"} and samples_of(tmp_path / "out")["a"]["jpg"] == JPG


def test_long_names_of_any_script(tmp_path, packs):
    packs([("図" * 60 + end, data) for end, data in ((".jpg", JPG), (".txt", b"x"))])
    assert len(captions(tmp_path / "out")) == 1


# --- pictures


def as_file(form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), 128, dtype=np.uint8)).save(out, form)
    return out.getvalue()


FORMS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", *(["JPEG2000"] if features.check_codec("jpg_2000") else [])]
FORMS += ["AVIF"] if features.check("avif") else []


@pytest.mark.parametrize("ending", ["img", "image", "JPG", "jpg", "bin", "avif", "jfif", "input_image", "0", "photo.dat"])
@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_known_by_their_content(form, ending, tmp_path, packs):
    said = packs([(f"a.{ending}", as_file(form)), ("a.txt", b"x")])
    (fields,) = samples_of(tmp_path / "out").values()
    assert len(fields) == 2 and json.loads(fields["json"])["width"] == 24
    assert "not used" not in said


def test_of_two_pictures_the_first_by_name_is_taken(tmp_path, packs):
    said = packs([("1.thumb.jpg", OTHER), ("1.png", picture(3, form="png")), ("1.jpg", JPG), ("1.txt", b"x")])
    assert samples_of(tmp_path / "out")["1"]["jpg"] == JPG
    assert "1 x further picture 'png': not used\n" in said and "1 x further picture 'thumb.jpg': not used" in said


@pytest.mark.parametrize(
    ("named", "packed", "unused"),
    [
        (["picture1.jpg"], [1], 0),
        (["picture2.jpg"], [1], 0),
        (["picture01.jpg"], [1], 0),
        (["picture1.jpg", "picture2.jpg"], [1, 2], 0),
        (["picture0.jpg", "picture1.jpg"], [1], 1),
        (["picture2.jpg", "picture3.jpg"], [1], 1),
        (["jpg", "picture2.jpg", "picture10.jpg"], [1, 2, 3], 0),
        (["jpg", "picture1.jpg"], [1], 1),
    ],
)
@pytest.mark.parametrize("text", ["txt", "json"])
def test_pictures_with_numbered_names_are_packed_or_counted(named, packed, unused, text, tmp_path, packs):
    words = {"txt": b"x", "json": json.dumps({"conversations": talk(("q", "a"))}).encode()}[text]
    said = packs([*((f"a.{name}", picture(k)) for k, name in enumerate(named, 1)), (f"a.{text}", words)])
    (fields,) = samples_of(tmp_path / "out").values()
    assert [data for name, data in sorted(fields.items()) if name != "json"] == [picture(k) for k in packed]
    assert said.count("1 x further picture") == unused


def test_a_text_under_the_name_of_a_picture_is_none(tmp_path, packs):
    said = packs([("a.jpg", JPG), ("a.txt", b"x"), ("a.picture2.txt", b"y")])
    assert samples_of(tmp_path / "out")["a"].keys() == {"jpg", "json"} and "1 x field 'picture2.txt': not used" in said


def test_a_marker_in_an_answer_adds_no_picture(tmp_path, packs):
    turns = talk(("<image>\nwhich tag ?", "write <image>"))
    said = packs([("1.1.jpg", JPG), ("1.2.jpg", OTHER), ("1.json", json.dumps({"conversations": turns}).encode())])
    assert samples_of(tmp_path / "out")["1"].keys() == {"jpg", "json"} and "1 x further picture '2.jpg': not used" in said


def test_pictures_of_content_lists_are_all_taken(tmp_path, packs):
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which ?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "this"}]
    packs([("1.1.jpg", JPG), ("1.2.jpg", OTHER), ("1.json", json.dumps({"messages": turns}).encode())])
    assert samples_of(tmp_path / "out")["1"]["picture2.jpg"] == OTHER


def test_dots_last_keeps_our_own_later_pictures(tmp_path, packs):
    packs([("a.jpg", JPG), ("a.picture2.jpg", OTHER), ("a.txt", b"x")], "--dots", "last")
    assert samples_of(tmp_path / "out")["a"]["picture2.jpg"] == OTHER
    assert split_name("picture2.jpg", LAST) == ("picture2", "jpg")


def test_pictures_that_a_conversation_has_places_for_are_all_taken(tmp_path, packs):
    asked = [{"from": "human", "value": "<image>\n<image>\n<image>\nwhich ?"}, {"from": "gpt", "value": "this"}]
    members = [(f"1.{k}.jpg", picture(k)) for k in (10, 2, 1)]
    said = packs([*members, ("1.json", json.dumps({"conversations": asked}).encode()), ("1.cls", b"3")])
    (fields,) = samples_of(tmp_path / "out").values()
    assert [fields[name] for name in ("jpg", "picture2.jpg", "picture3.jpg")] == [picture(k) for k in (1, 2, 10)]
    assert "further picture" not in said and "1 x field 'cls'" in said
    assert ShardIndex.open(tmp_path / "out").samples == 1


def test_a_sample_without_a_picture_that_had_other_fields_is_counted(tmp_path, packs):
    said = packs([("1.mp4", b"video"), ("1.txt", b"x"), ("2.txt", b"y")])
    assert "1 x sample with other fields, but no picture: packed as text only" in said and "1 x field 'mp4'" in said


def test_a_picture_that_is_none_fails(tmp_path, packs):
    packs(
        [("1.heic", b"\x00\x00\x00\x18ftypheic" + bytes(20)), ("1.txt", b"x"), ("2.txt", b"y")], "--max-failed-fraction", ".5"
    )
    assert failures_of(tmp_path / "out")[0]["key"] == "1"


def test_many_different_fields_do_not_flood_the_summary(tmp_path, packs):
    said = packs([(f"{k}.{end}", b"x") for k in range(40) for end in ("txt", f"field{k:02d}")])
    assert said.count(": not used") == 19 and "21 x other notes" in said


@given(st.binary(max_size=40))
def test_no_text_is_taken_for_a_picture(data):
    assert not begins_as_picture(data.hex().encode())


# --- texts


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("vélo".encode(), "vélo"),
        ("\ufeffvélo".encode(), "vélo"),
        ("vélo".encode("latin-1"), "vélo"),
        ("vélo".encode("utf-16"), "vélo"),
        ("“cube”".encode("cp1252"), "“cube”"),
        (b"\x81\xe9", "\x81é"),
        ("vélo".encode("utf-32"), "vélo"),
        ("\ufeffvélo".encode("utf-32-be"), "vélo"),
        ("vélo €".encode("utf-16-le"), "vélo €"),
        ("vélo €".encode("utf-16-be"), "vélo €"),
        (b"a\0b c", "ab c"),
    ],
)
def test_encodings(text, caption, tmp_path, packs):
    said = packs([("1.jpg", JPG), ("1.txt", text)])
    assert captions(tmp_path / "out") == {"1": caption}
    legal = text.startswith((b"v\xc3", b"\xef", b"\xff\xfe", b"a\0", b"v\0", b"\0"))
    assert ("1 x text that is UTF-16 without" in said) is (" €" in caption)
    assert ("1 x text with null characters" in said) is text.startswith(b"a\0b")
    assert ("1 x text that is not UTF-8: read as Windows-1252" in said) is not legal


@pytest.mark.parametrize(
    ("record", "text", "kept"),
    [
        ({"caption": None}, b"a", {"caption": "a"}),
        ({"caption": None, "conversations": TALK}, b"", {"conversations": TALK}),
        ({"caption": "", "conversations": TALK}, None, {"conversations": TALK}),
        ({"caption": "a", "conversations": []}, None, {"caption": "a"}),
        ({"caption": ["a", "", "b"]}, None, {"caption": "a", "captions": ["a", "b"]}),
        ({"captions": ["a", "b"]}, None, {"caption": "a", "captions": ["a", "b"]}),
        ({"text": "a"}, None, {"text": "a", "caption": "a"}),
        ({"text": 3, "conversations": TALK}, None, {"text": 3, "conversations": TALK}),
        ({"caption": "a"}, b" \n", {"caption": "a"}),
        ({"caption": " ", "text": "a"}, None, {"caption": "a", "text": "a"}),
        ({"caption": "a\0b"}, None, {"caption": "ab"}),
        ({"conversation": TALK}, b"", {"conversations": TALK}),
        (
            {"messages": TALK, "text": {"of": "another meaning"}},
            None,
            {"conversations": TALK, "text": {"of": "another meaning"}},
        ),
        ({"conversations": TALK, "caption": ["", " "]}, None, {"conversations": TALK}),
        ({"conversations": [], "messages": TALK}, None, {"conversations": TALK}),
        ({"caption": "a", "status": "ok"}, None, {"caption": "a", "status": "ok"}),
    ],
)
def test_captions(record, text, kept, tmp_path, packs):
    packs([("1.jpg", JPG), ("1.json", json.dumps(record).encode()), *([("1.txt", text)] if text is not None else [])])
    assert records_of(tmp_path / "out") == [kept | {"width": 20, "height": 12}]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("1.json", b'{"caption": null}')], "has neither a caption nor conversations (its fields: jpg, json)"),
        ([("1.cls", b"3")], "has neither a caption nor conversations (its fields: cls, jpg)"),
        ([("1.txt", b" ")], "has an empty caption, or one that is not text (its fields: jpg, txt)"),
        ([("1.json", b'{"caption": 3}')], "has a caption that is not text but a int"),
        ([("1.json", b'{"caption": [3]}')], "has a caption that is a list without a text"),
        ([("1.json", b"[" * 100_000)], "has a json that cannot be read"),
        ([("1.json", b"[]")], "has a json that is not an object but a list"),
    ],
)
def test_entries_without_a_text_fail_with_their_reason(members, reason, tmp_path, packs):
    packs([("1.jpg", JPG), *members, ("2.txt", b"good")], "--max-failed-fraction", "0.5")
    (failure,) = failures_of(tmp_path / "out")
    assert failure["key"] == "1" and failure["reason"].startswith(reason)


def test_tars_without_a_sample_are_refused(tmp_path, refusal):
    write_tar(tmp_path / "in" / "0.tar", [])
    assert "there is not one sample in the source" in refusal(pack_tars(str(tmp_path / "in"), tmp_path / "out"))


def test_compressed_tars_are_refused_with_the_program(tmp_path, refusal):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "0.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    assert "is compressed; unpack it: gunzip -c" in refusal(pack_tars(str(tmp_path / "in"), tmp_path / "out"))
    (tmp_path / "in" / "0.tar").rename(tmp_path / "in" / "0.tar.gz")
    assert "'0.tar.gz': unpack them (gunzip)" in refusal(pack_tars(str(tmp_path / "in"), tmp_path / "out"))


# --- properties

names = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=200)


@given(names)
def test_a_stored_key_is_always_safe(name):
    key = stored_key(name)
    parts = key.split("/")
    assert len(key.encode()) <= LONGEST_KEY and not key.startswith("/") and "\\" not in key
    assert all(part not in ("", ".", "..") for part in parts) and "." not in parts[-1]
    assert stored_key(key) == key


@given(st.lists(st.text("ab.1", min_size=1, max_size=6).map(lambda text: f"x{text}x"), unique=True, min_size=1, max_size=8))
def test_dots_last_finds_exactly_the_names(stems):
    for stem in stems:
        assert split_name(f"{stem}.JPG", LAST) == (stem, "jpg")
        assert split_name(f"d.e/{stem}.depth.png", LAST) == (f"d.e/{stem}", "depth.png")
        assert split_name(f"{stem}.jpg", FIRST) == (stem.partition(".")[0], f"{stem}.jpg".partition(".")[2])


@given(
    st.sets(
        st.text("5ab.", min_size=1, max_size=4).map(lambda text: f"{text}.jpg")
        | st.sampled_from(["jpg", "txt", "a.txt", "json"])
    )
)
def test_every_field_has_a_role_or_is_named(fields):
    try:
        refuse_several(fields)
    except EntryFailure as failure:
        assert "--dots last" in str(failure)
    roles = roles_of(fields, lambda name: b"")
    parts = [
        *roles.unused,
        *roles.targets,
        *roles.further,
        *(name for name in (roles.json, roles.text, roles.picture) if name is not None),
    ]
    assert sorted(parts) == sorted(fields)


@given(st.binary())
def test_any_bytes_are_a_text_or_a_failure(data):
    try:
        assert isinstance(decoded_text(data, Counter()), str)
    except EntryFailure:
        assert data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))


values: Any = st.recursive(
    st.none() | st.integers() | st.text() | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)


@given(st.fixed_dictionaries({}, optional={"caption": values, "captions": values, "text": values}), st.none() | st.text())
def test_a_caption_is_a_text_or_absent(record, text):
    try:
        made = with_caption(record, text, Counter())
    except EntryFailure:
        return
    assert isinstance(made.get("caption", ""), str)
    if text and (kept := text.replace("\0", "")).strip():
        assert made["caption"] == kept


# --- the folder of cases, where it is

EXPECTED: dict[str, tuple[int, str]] = {
    "wds_absolute": (0, "2 of 2 entries packed"),
    "wds_caption_list": (0, "1 of 1 entries packed"),
    "wds_cls_only": (2, "has neither a caption nor conversations (its fields: cls, jpg)"),
    "wds_dots": (2, "Type --dots last"),
    "wds_dots_lost": (2, "Type --dots last"),
    "wds_dotslash": (0, "1 of 1 entries packed"),
    "wds_dup_key": (0, "2 of 2 entries packed"),
    "wds_field_0": (0, "1 of 1 entries packed"),
    "wds_json_caption_key_text": (0, "1 of 1 entries packed"),
    "wds_latin1_txt": (0, "read as Windows-1252"),
    "wds_long_unicode_key": (0, "1 of 1 entries packed"),
    "wds_macos": (0, "2 x hidden file"),
    "wds_null_caption": (2, "1 of 4 entries failed (has an empty caption"),
    "wds_two_pictures": (0, "1 x further picture 'png': not used"),
    "wds_upper": (0, "1 of 1 entries packed"),
    "wds_wrong_ext": (0, "1 of 1 entries packed"),
    "wds_zero_tar": (2, "there is not one sample in the source"),
    "raw_tar_without_json": (0, "entries packed, 0 failed"),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not part of the repository")
@pytest.mark.parametrize("case", EXPECTED)
def test_cases(case, tmp_path, capsys):
    code, words = EXPECTED[case]
    assert pack_tars(str(CASES / case), tmp_path / "out") == code
    said = capsys.readouterr()
    assert words in said.out + said.err
    if case in ("wds_dots", "wds_dots_lost"):
        assert pack_tars(str(CASES / case), tmp_path / "all", "--dots", "last") == 0
        assert len(samples_of(tmp_path / "all")) == (3 if case == "wds_dots_lost" else 2)


# --- tars given to a run as they are


def test_a_run_refuses_tars_without_json_and_names_the_command(tmp_path):
    write_tar(tmp_path / "raw" / "0.tar", [("1.jpg", JPG), ("1.txt", b"x")])
    with pytest.raises(DataError) as error:
        ShardIndex.open(tmp_path / "raw")
    said = str(error.value)
    assert "none of its 1 samples has a json" in said and "\n" not in said
    command = said.partition("megaunigame prepare ")[2].split()
    assert main(command) == 0
    assert ShardIndex.open(tmp_path / "raw-packed").samples == 1


def test_a_run_says_what_it_does_not_read(tmp_path, caplog):
    write_tar(tmp_path / "0.tar", [("1.jpg", JPG), ("1.txt", b"x"), ("1.json", b"{}"), ("2.5.jpg", JPG)])
    assert ShardIndex.open(tmp_path).samples == 2
    said = caplog.text
    assert "1 of 2 samples have no json" in said and "5.jpg (1 samples), txt (1 samples)" in said and "--format wds" in said


def test_tars_of_ours_without_a_manifest_open_silently(tmp_path, caplog):
    assert ShardIndex.open(write_shards(tmp_path, [3], index=False, manifest=False)).samples == 3
    assert not caplog.text
