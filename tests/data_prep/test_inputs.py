"""Every input format, made small but in its real shape, through `pack` and `verify`."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.inputs.sample import LONGEST_KEY, short_key
from data_prep.scenes.samples import sample as scene
from tests.data.shard_files import write_tar
from tests.data_prep.stored import failures_of, pixels, records_of, samples_of
from tests.data_prep.toy_sets import TALK, cc3m, pack_tars, pack_vqa, picture, write_vqa


def spoken(talk: list[dict[str, str]]) -> int:
    """Characters of a conversation, without the place of its picture."""
    return sum(len(turn["value"].replace("<image>\n", "")) for turn in talk)


def columns_of(folder: Path, stem: str) -> list[dict[str, float]]:
    return [sample["columns"] for sample in json.loads((folder / f"{stem}.idx.json").read_text())["samples"]]


# --- llava-json


def test_llava_finds_pictures_of_another_ending_and_takes_the_first_frame(tmp_path):
    root = tmp_path / "root" / "ocr_vqa" / "images"
    root.mkdir(parents=True)
    (root / "1.png").write_bytes(picture(1, form="png"))
    frames = [Image.open(io.BytesIO(picture(k))) for k in range(3)]
    frames[0].save(root / "2.gif", save_all=True, append_images=frames[1:])
    frames[0].save(root / "3.webp", save_all=True, append_images=frames[1:], lossless=True)
    (root / "4.jpg").write_bytes(picture(4)[:300])
    names = ["1.jpg", "2.jpg", "3.webp", "4.jpg", "5.jpg"]
    entries = [{"id": n, "image": f"ocr_vqa/images/{n}", "conversations": TALK} for n in names]
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    command = ["pack", "--format", "llava-json", "--json", str(tmp_path / "mix.json"), "--image-root", str(tmp_path / "root")]
    assert main([*command, "--out", str(tmp_path / "out"), "--max-failed-fraction", "0.4"]) == 0
    found = samples_of(tmp_path / "out")
    assert list(found) == ["00000000-1_jpg", "00000001-2_jpg", "00000002-3_webp"]
    assert all(set(fields) == {"png", "json"} for fields in found.values())
    np.testing.assert_array_equal(pixels(found["00000002-3_webp"]["png"]), np.array(frames[0]))
    reasons = {failure["image"]: failure["reason"] for failure in failures_of(tmp_path / "out")}
    assert reasons["ocr_vqa/images/5.jpg"] == "missing file"
    assert reasons["ocr_vqa/images/4.jpg"].startswith("damaged image")
    assert columns_of(tmp_path / "out", "llava-000000") == 3 * [
        {"width": 20, "height": 12, "conversation_characters": spoken(TALK), "conversation_pairs": len(TALK) // 2}
    ]
    assert main(["verify", str(tmp_path / "out")]) == 0


# --- vqa-json


@pytest.fixture
def vqa(tmp_path) -> dict[str, Path]:
    return write_vqa(tmp_path)


def test_vqa_groups_by_picture_and_keeps_all_ten_answers(vqa, forked):
    assert pack_vqa(vqa, "--shard-size", "2", "--workers", "2") == 0
    found = samples_of(vqa["out"])
    assert list(found) == ["00000000-100", "00000001-101", "00000002-102"]
    assert found["00000001-101"]["jpg"] == picture(101)
    first = json.loads(found["00000000-100"]["json"])
    assert first["question_ids"] == [1000, 1003, 1006] and first["image_id"] == 100
    assert [turn["value"] for turn in first["conversations"]] == [
        *("<image>\nQuestion 0?", "a0", "Question 3?", "a3", "Question 6?", "a6")
    ]
    assert first["kinds"] == 3 * ["yes/no"]
    assert first["answers"] == [[*7 * [f"a{k}"], "b7", "b8", "b9"] for k in (0, 3, 6)]
    assert columns_of(vqa["out"], "vqa-000001") == [
        {"image_id": 102, "width": 20, "height": 12, "conversation_characters": 26, "conversation_pairs": 2}
    ]
    assert main(["verify", str(vqa["out"])]) == 0


def test_vqa_test_sets_have_questions_only(vqa, capsys):
    content = json.loads(vqa["questions"].read_text()) | {"data_subtype": "test-dev2015"}
    vqa["questions"].write_text(json.dumps(content))
    for path in list(vqa["image_root"].iterdir()):
        path.rename(path.with_name(path.name.replace("train2014", "test2015")))
    assert pack_vqa(vqa, annotated=False) == 0
    assert records_of(vqa["out"])[1] == {
        **{"image_id": 101, "question_ids": [1001, 1004], "questions": ["Question 1?", "Question 4?"]},
        **{"width": 20, "height": 12},
    }
    assert main(["verify", str(vqa["out"])]) == 0
    assert main(["stats", str(vqa["out"]), "--sheet", str(vqa["out"].parent / "sheet.png")]) == 0
    assert "vqa: 3 samples" in capsys.readouterr().out


def test_vqa_names_of_pictures_can_be_set(vqa, refusal):
    for path in list(vqa["image_root"].iterdir()):
        path.rename(path.with_name(path.name.removeprefix("COCO_train2014_")))
    assert "3 of 3 entries failed (missing file: COCO_train2014_000000000100.jpg" in refusal(pack_vqa(vqa))
    said = refusal(pack_vqa(vqa, "--image-pattern", "{picture}.jpg"))
    assert "--image-pattern {picture}.jpg: cannot be filled" in said
    assert pack_vqa(vqa, "--image-pattern", "{image_id:012d}.jpg") == 0
    assert len(samples_of(vqa["out"])) == 3


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("annotations", lambda c: c["annotations"].pop(2), "nothing about question 1004 of questions.json"),
        ("annotations", lambda c: c["annotations"][1].pop("answers"), "annotations[1] lacks answers"),
        ("annotations", lambda c: c.pop("annotations"), "has no annotations; wanted"),
        ("questions", lambda c: c["questions"][0].pop("image_id"), "questions[0] lacks image_id"),
        ("questions", lambda c: c.pop("data_subtype"), "type --image-pattern"),
    ],
)
def test_vqa_files_of_another_form_are_refused(vqa, file, change, said, refusal):
    content = json.loads(vqa[file].read_text())
    change(content)
    vqa[file].write_text(json.dumps(content))
    assert said in refusal(pack_vqa(vqa))
    assert not vqa["out"].exists()


# --- wds


def test_tars_are_packed_shard_for_shard(tmp_path, forked):
    cc3m(tmp_path / "cc3m")
    assert pack_tars(str(tmp_path / "cc3m/cc3m-train-{0000..0002}.tar"), tmp_path / "out", "--workers", "2") == 0
    found = samples_of(tmp_path / "out")
    assert list(found) == [f"{number:09d}" for number in range(12)]
    assert set(found["000000005"]) == {"jpg", "json"}
    assert found["000000005"]["jpg"] == picture(5)
    assert json.loads(found["000000005"]["json"]) == {
        **{"key": "000000005", "status": "success", "original_width": 40, "clip_similarity": 0.5},
        **{"caption": "words 5", "width": 20, "height": 12},
    }
    columns = columns_of(tmp_path / "out", "wds-000001")
    assert columns[1] == {
        **{"original_width": 40, "clip_similarity": 0.5, "width": 20, "height": 12, "caption_characters": len("words 5")}
    }
    for form in ("cc3m", "cc3m/*.tar"):
        assert pack_tars(str(tmp_path / form), tmp_path / "out") == 0  # the same sources: all is already there
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_tars_without_json_and_with_conversations_and_targets(tmp_path):
    made = scene(1, "val", 3, 64)
    key = made.pop("__key__")
    talk = json.dumps({"conversations": TALK}).encode()
    write_tar(tmp_path / "in" / "00000.tar", [("a/b/blip.jpg", picture(1)), ("a/b/blip.txt", "vélo".encode())])
    write_tar(tmp_path / "in" / "00001.tar", [("talk.JPG", picture(2)), ("talk.json", talk), ("talk.cls", b"7")])
    write_tar(tmp_path / "in" / "00002.tar", [(f"{key}.{field}", bytes(data)) for field, data in made.items()])  # type: ignore[arg-type]
    assert pack_tars(str(tmp_path / "in"), tmp_path / "out") == 0
    found = samples_of(tmp_path / "out")
    assert list(found) == ["a/b/blip", "talk", str(key)]
    assert json.loads(found["a/b/blip"]["json"]) == {"caption": "vélo", "width": 20, "height": 12}
    assert set(found["talk"]) == {"jpg", "json"} and json.loads(found["talk"]["json"])["conversations"] == TALK
    for field in ("png", "depth.png", "seg.png"):
        assert found[str(key)][field] == made[field]
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_texts_of_a_tar_as_other_tools_write_them(tmp_path):
    """With a byte order mark; and an empty txt next to a json that has a caption or a conversation."""
    texts = {
        "mark": (b"\xef\xbb\xbfa cube", {}),
        "caption": (b"", {"caption": "a ball"}),
        "talk": (b" \n", {"conversations": TALK}),
        "both": (b"a cone", {"caption": "of the json"}),
    }
    members = []
    for key, (text, meta) in texts.items():
        members += [(f"{key}.jpg", picture(1)), (f"{key}.json", json.dumps(meta).encode()), (f"{key}.txt", text)]
    write_tar(tmp_path / "in" / "a.tar", members)
    assert pack_tars(str(tmp_path / "in"), tmp_path / "out") == 0
    captions = [record.get("caption") for record in records_of(tmp_path / "out")]
    assert captions == ["a cube", "a ball", None, "a cone"]


def test_bad_samples_of_a_tar_are_failures(tmp_path):
    failed_download = json.dumps({"status": "failed_to_download", "error_message": "404"}).encode()
    members = [
        *(("cut.jpg", picture(1)[:200]), ("cut.txt", b"words")),
        *(("good.jpg", picture(2)), ("good.txt", b"words")),
        ("lost.json", failed_download),
        ("mute.jpg", picture(3)),
        *(("odd.jpg", picture(4)), ("odd.json", b"{")),
        *(("talk.jpg", picture(5)), ("talk.json", json.dumps({"conversations": TALK[:1]}).encode())),
    ]
    write_tar(tmp_path / "in" / "00000.tar", members)
    assert pack_tars(str(tmp_path / "in"), tmp_path / "out", "--max-failed-fraction", "0.9") == 0
    assert list(samples_of(tmp_path / "out")) == ["good"]
    reasons = {failure["key"]: failure["reason"] for failure in failures_of(tmp_path / "out")}
    assert reasons.pop("cut").startswith("damaged image")
    assert reasons.pop("odd").startswith("has a json that cannot be read")
    assert reasons.pop("talk").startswith("has turns from ['human']")
    assert reasons == {
        "lost": "img2dataset says failed_to_download: 404",
        "mute": "has neither a caption nor conversations (its fields: jpg)",
    }


def test_tars_that_are_not_whole_are_refused_by_name(tmp_path, refusal):
    cc3m(tmp_path / "cut")
    tar = tmp_path / "cut" / "cc3m-train-0001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    said = refusal(pack_tars(str(tmp_path / "cut"), tmp_path / "out"))
    assert "cc3m-train-0001.tar: has no end-of-archive mark, it was cut short" in said
    assert not (tmp_path / "out").exists()

    cc3m(tmp_path / "damaged", tars=1)
    tar = tmp_path / "damaged" / "cc3m-train-0000.tar"
    with tarfile.open(tar) as archive:
        header = archive.getmembers()[4].offset
    raw = bytearray(tar.read_bytes())
    raw[header + 10] ^= 1
    tar.write_bytes(raw)
    assert f"has a damaged header at byte {header:,}" in refusal(pack_tars(str(tmp_path / "damaged"), tmp_path / "out"))


def test_sources_that_are_not_there_or_lie_in_out(tmp_path, refusal):
    cc3m(tmp_path / "cc3m")
    said = refusal(pack_tars(str(tmp_path / "cc3m/cc3m-train-{0000..0003}.tar"), tmp_path / "out"))
    assert "cc3m-train-0003.tar: no .tar file there" in said
    assert "the sources lie there" in refusal(pack_tars(str(tmp_path / "cc3m"), tmp_path / "cc3m", "--overwrite"))
    assert len(list((tmp_path / "cc3m").glob("*.tar"))) == 3


def test_long_keys_stay_unique_and_fit_a_tar():
    keys = [short_key("ü" * 60 + end) for end in "ab"]
    assert len(set(keys)) == 2 and all(len(key.encode()) <= LONGEST_KEY for key in keys)
    assert short_key("a/b") == "a/b"


# --- parquet


def test_parquet_rows_are_cut_across_files_and_row_groups(tmp_path, forked):
    (tmp_path / "in").mkdir()
    for file in range(2):
        numbers = range(10 * file, 10 * file + 10)
        table = pa.table(
            {
                "image": [{"bytes": picture(n), "path": f"{n}.jpg"} if n != 13 else None for n in numbers],
                "text": [f"words {n}" for n in numbers],
                "score": [n / 2 if n else float("nan") for n in numbers],
                "id": [f"row {n}" for n in numbers],
                "embedding": [[0.0, 1.0] for _ in numbers],
            }
        )
        pq.write_table(table, tmp_path / "in" / f"{file}.parquet", row_group_size=4)
    command = ["pack", "--format", "parquet", "--source", str(tmp_path / "in"), "--caption-column", "text"]
    assert main([*command, "--out", str(tmp_path / "out"), "--shard-size", "7", "--workers", "2"]) == 0
    found = samples_of(tmp_path / "out")
    assert list(found) == [f"{n:08d}-row_{n}" for n in range(20)]
    for number, fields in enumerate(found.values()):
        size = {} if number == 13 else {"width": 20, "height": 12}
        score = {"score": number / 2} if number else {}
        assert json.loads(fields["json"]) == {"id": f"row {number}", "caption": f"words {number}", **score, **size}
        assert fields.get("jpg") == (None if number == 13 else picture(number))
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_parquet_conversations_and_bad_rows(tmp_path):
    table = pa.table({"picture": [picture(0), picture(1), b"no"], "conversations": [json.dumps(TALK), "[", json.dumps(TALK)]})
    pq.write_table(table, tmp_path / "text.parquet")
    pq.write_table(pa.table({"picture": [picture(0)], "conversations": [TALK]}), tmp_path / "list.parquet")
    command = ["pack", "--format", "parquet", "--image-column", "picture", "--max-failed-fraction", "0.7"]
    for name in ("text", "list"):
        assert main([*command, "--source", str(tmp_path / f"{name}.parquet"), "--out", str(tmp_path / name)]) == 0
        assert list(samples_of(tmp_path / name)) == ["00000000"]
        assert records_of(tmp_path / name)[0]["conversations"] == TALK
    reasons = [failure["reason"] for failure in failures_of(tmp_path / "text")]
    assert reasons[0].startswith("has conversations that are not JSON") and reasons[1].startswith("not an image in AVIF, ")


def test_parquet_files_that_do_not_fit_are_refused(tmp_path, monkeypatch, refusal):
    pq.write_table(pa.table({"jpg": [picture(0)], "caption": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"no table")
    command = ["pack", "--format", "parquet", "--out", str(tmp_path / "out"), "--source"]
    said = refusal(main([*command, str(tmp_path / "a.parquet")]))
    assert "has the columns jpg, caption; wanted image (bytes)" in said
    assert "b.parquet: not a readable Parquet file" in refusal(main([*command, str(tmp_path / "b.parquet")]))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "megaunigame[parquet]" in refusal(main([*command, str(tmp_path / "a.parquet")]))
    assert not (tmp_path / "out").exists()


# --- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "vqa-json", "--image-root", "x"], "--format vqa-json needs --questions"),
        (["--format", "wds", "--source", "x", "--json", "y"], "--json is for --format llava-json or unimrg, not for wds"),
        (["--format", "wds", "--source", "x", "--shard-size", "5"], "--shard-size is for --format llava-json or"),
        (["--format", "wds", "--source", "x", "--rank", "2", "--world", "2"], "ranks count from 0 to world - 1"),
    ],
)
def test_options_of_another_format_are_refused(options, said, tmp_path, refusal):
    assert said in refusal(main(["pack", *options, "--out", str(tmp_path / "out")]))
