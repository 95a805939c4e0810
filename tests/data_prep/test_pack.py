"""LLaVA-style JSON in, shards out: what is kept, what is counted, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.statistics import read_manifest
from tests.data.shard_files import talk
from tests.data_prep.stored import failures_of, pixels, samples_of
from tests.data_prep.toy_sets import TALK, TEXT

NO_IMAGE = "not an image in AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP"


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    picture = Image.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3))
    for name in ("a.png", "b.jpg", "c.webp", "d.gif", "sub/e.bmp"):
        picture.save(folder / name)
    picture.save(folder / "wrong_name.jpg", format="png")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").touch()
    return folder


def pack(tmp_path, entries: Any, pictures: Path, *more: str) -> int:
    source = tmp_path / "entries.json"
    source.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    out = ["--out", str(tmp_path / "out")]
    return main(["pack", "--format", "llava-json", "--json", str(source), "--image-root", str(pictures), *out, *more])


def test_images_are_stored_as_they_are_and_others_as_png(tmp_path, pictures):
    names = ["a.png", "b.jpg", "c.webp", "d.gif", "sub/e.bmp", "wrong_name.jpg"]
    assert pack(tmp_path, [{"id": n, "image": n, "conversations": TALK} for n in names], pictures) == 0
    found = samples_of(tmp_path / "out")
    assert list(found) == [
        *("00000000-a_png", "00000001-b_jpg", "00000002-c_webp", "00000003-d_gif", "00000004-sub_e_bmp"),
        "00000005-wrong_name_jpg",
    ]
    extensions = [next(name for name in fields if name != "json") for fields in found.values()]
    assert extensions == ["png", "jpg", "webp", "png", "png", "png"]
    for name, fields in zip(names, found.values(), strict=True):
        image = next(data for field, data in fields.items() if field != "json")
        if name in ("d.gif", "sub/e.bmp"):
            assert image.startswith(b"\x89PNG")
            np.testing.assert_array_equal(pixels(image), pixels((pictures / name).read_bytes(), "RGB"))
        else:
            assert image == (pictures / name).read_bytes()
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_text_only_rows_are_kept_and_markers_put_in_order(tmp_path, pictures):
    late = talk(("what ?\n<image>", "that"))
    system = [{"from": "system", "value": "be short"}, *TEXT]
    entries = [
        {"id": "t", "conversations": TEXT},
        {"id": "t", "image": None, "conversations": TEXT},
        {"id": "late", "image": "a.png", "conversations": late, "source": "here"},
        {"image": "a.png", "conversations": system},
        {"id": 17, "image": "a.png", "conversations": TALK},
    ]
    assert pack(tmp_path, entries, pictures) == 0
    found = samples_of(tmp_path / "out")
    assert list(found) == ["00000000-t", "00000001-t", "00000002-late", "00000003", "00000004-17"]
    assert set(found["00000000-t"]) == set(found["00000001-t"]) == {"json"}
    said = [json.loads(fields["json"]) for fields in found.values()]
    assert said[0]["conversations"] == TEXT
    assert said[2] == {"id": "late", "conversations": TALK, "source": "here", "width": 10, "height": 12}
    assert said[3]["conversations"] == [system[0], *TALK]
    assert said[4]["conversations"] == TALK


def test_failures_are_counted_listed_and_limited(tmp_path, pictures, refusal):
    names = ["a.png", "gone.png", "text.jpg", "empty.png", "b.jpg"]
    entries = [{"id": k, "image": name, "conversations": TALK} for k, name in enumerate(names)]

    said = refusal(pack(tmp_path, entries, pictures))
    assert "1 of 5 entries failed (missing file: gone.png" in said and "--max-failed-fraction 0.2 or more" in said
    assert not list((tmp_path / "out").glob("*.tar"))

    said = refusal(pack(tmp_path, entries, pictures, "--max-failed-fraction", "0.5", "--shard-size", "2"))
    assert "3 of 5 entries failed" in said
    assert not (tmp_path / "out" / "dataset.json").exists()

    assert pack(tmp_path, entries, pictures, "--max-failed-fraction", "0.6", "--shard-size", "2") == 0
    assert list(samples_of(tmp_path / "out")) == ["00000000-0", "00000004-4"]
    assert failures_of(tmp_path / "out") == [
        {"key": "00000001-1", "image": "gone.png", "reason": "missing file"},
        {"key": "00000002-2", "image": "text.jpg", "reason": NO_IMAGE},
        {"key": "00000003-3", "image": "empty.png", "reason": NO_IMAGE},
    ]
    # The middle shard lost both its entries: it is an empty tar, so that brace lists of the shards have no gap.
    manifest = read_manifest(tmp_path / "out")
    assert [shard["file"] for shard in manifest["shards"]] == [f"llava-00000{k}.tar" for k in range(3)]
    assert [shard["samples"] for shard in manifest["shards"]] == [1, 0, 1]
    assert manifest["samples"] == 2
    assert main(["verify", str(tmp_path / "out")]) == 0


def _with(**changes: Any) -> list[Any]:
    """A good entry, then one with changes (None removes)."""
    entry = {"id": "x", "image": "a.png", "conversations": TALK} | changes
    return [{"conversations": TEXT}, {name: value for name, value in entry.items() if value != "remove"}]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("{", "not JSON"),
        ("[{}, 3", "not JSON"),
        ({"id": 1}, "got an object with the keys id; wanted a list"),
        (3, "got a JSON int; wanted a list"),
        ([], "got an empty list"),
    ],
)
def test_a_json_of_another_form_is_refused(entries, said, tmp_path, pictures, refusal):
    message = refusal(pack(tmp_path, entries, pictures))
    assert said in message and "entries.json" in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()


ODD = {
    "not an object": ([{"conversations": TEXT}, "text"], "is a JSON str; wanted a list of"),
    "no text": (_with(conversations="remove"), "has neither a caption nor conversations (its keys: id)"),
    "empty": (_with(conversations=[]), "has neither a caption nor conversations"),
    "a text": (_with(conversations="hello"), "has no conversations"),
    "no value": (_with(conversations=[{"from": "human"}]), "has a turn that is not {from, value}"),
    "a number": (_with(conversations=[{"from": "human", "value": 3}]), "has a turn whose text is a int"),
    "a list": (_with(conversations=[["human", "what ?"]]), "has a turn that is not an object"),
    "no answer": (_with(conversations=TALK[:1]), "has turns from ['human']"),
    "no question": (_with(conversations=TALK[1:]), "has turns from ['gpt']"),
    "empty answer": (_with(conversations=talk(("what ?", " "))), "has only empty answers or questions"),
    "another speaker": (_with(conversations=[{"from": "tool", "value": "a"}, *TALK]), "from 'tool'; legal are human, user"),
    "lost picture": (_with(image="remove"), "has <image> 1 times in its questions and no image"),
    "a picture too few": (_with(conversations=[*TALK, *TALK]), "has <image> 2 times in its questions and 1 image"),
    "twice": (_with(conversations=talk(("<image><image>\nwhat ?", "a"))), "has <image> 2 times"),
    "leads out": (_with(image="../secret.png"), "leads out of the image root"),
    "leads out, encoded": (_with(image="sub/%2e%2e/../../secret.png"), "leads out of the image root"),
    "absolute": (_with(image="/etc/passwd"), "missing file"),
    "too long": (_with(image="a" * 5000 + ".png"), "missing file"),
    "null in a name": (_with(image="a\0.png"), "missing file"),
    "not there": (_with(image="sub\\gone%20.png"), "missing file (neither as 'sub/gone%20.png', nor as"),
    "one of two gone": (_with(image=["a.png", "gone.png"]), "missing file"),
    "a number for a picture": (_with(image=3), "has a picture 3, which is not a path"),
    "two keys": (_with(images=["b.jpg"]), "different pictures in `image` and in `images`"),
    "url": (_with(image="https://example.org/b.jpg"), "download it"),
    "bucket": (_with(image="s3://bucket/b.jpg"), "download it"),
    "inside": (_with(image="data:image/png;base64,AAAA"), "inside the JSON"),
    "film": (_with(image="remove", video="a.mp4", conversations=TEXT), "has video: only pictures are packed"),
    "kinds": (_with(kinds=["a", "b"]), "has 2 kinds for 1 question"),
    "sound": (_with(conversations=[{"role": "user", "content": [{"type": "audio"}]}, TALK[1]]), "neither a text nor an image"),
    "half a pair": (_with(conversations=talk(("what \ud83d ?", "that"))), "text that is not Unicode"),
}


@pytest.mark.parametrize("case", ODD)
def test_one_odd_entry_is_one_failure(case, tmp_path, pictures, refusal):
    entries, said = ODD[case]
    message = refusal(pack(tmp_path, entries, pictures))
    assert "1 of 2 entries failed" in message and said in message.replace("\\\\", "\\")
    assert pack(tmp_path, entries, pictures, "--max-failed-fraction", "0.5") == 0
    assert list(samples_of(tmp_path / "out")) == ["00000000" if "conversations" in entries[0] else "00000000-x"]
    assert [said in failure["reason"] for failure in failures_of(tmp_path / "out")] == [True]


def test_missing_files_and_folders_are_named(tmp_path, pictures, refusal):
    assert "nowhere: no such folder" in refusal(pack(tmp_path, _with(), tmp_path / "nowhere"))
    arguments = ["--json", str(tmp_path / "no.json"), "--image-root", str(pictures), "--out", str(tmp_path / "out")]
    assert "no.json: cannot be read" in refusal(main(["pack", "--format", "llava-json", *arguments]))


def test_another_json_in_the_same_folder_needs_overwrite(tmp_path, pictures, refusal):
    assert pack(tmp_path, _with(), pictures) == 0
    assert pack(tmp_path, _with(), pictures) == 0
    assert "--overwrite" in refusal(pack(tmp_path, _with(id="other"), pictures))
    assert pack(tmp_path, _with(id="other"), pictures, "--overwrite") == 0
    assert list(samples_of(tmp_path / "out")) == ["00000000", "00000001-other"]
