"""The layout of UniMRG's released data: pictures, depth maps and contours in folders next to a JSON file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.statistics import read_manifest
from megaunigame.data.decode import decode_sample
from megaunigame.representations.depth import Depth
from megaunigame.representations.segmentation import Segmentation
from tests.data.shard_files import encoded
from tests.data_prep.stored import failures_of, pixels, records_of, samples_of
from tests.data_prep.toy_sets import TALK, TEXT, pack_tars, picture

HEIGHT, WIDTH = 12, 20
NAMES = ("coco/train2017/1.jpg", "gqa/images/1.jpg", "ocr_vqa/images/2.jpg")
DEPTH = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) + 15  # 15 to 254: not the whole range
LINES = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
LINES[3, 2:9] = 255


def gray(levels: np.ndarray) -> bytes:
    """Gray as the tools of the release write it: three equal channels."""
    return encoded(np.repeat(levels[:, :, None], 3, axis=2))


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def released(tmp_path) -> Path:
    """Three pictures, two of one base name, the third a .gif that the JSON calls .jpg; and a text."""
    folder = tmp_path / "LLaVA-Instruct-150K"
    for number, name in enumerate(NAMES):
        seen = Path(name).with_suffix(".gif") if "ocr" in name else name
        write(folder / "tuning_data" / seen, picture(number, WIDTH, HEIGHT, "gif" if "ocr" in name else "jpeg"))
        write(folder / "tuning_data_depth" / Path(name).with_suffix(".png"), gray(DEPTH if number != 1 else DEPTH[::-1]))
        write(folder / "tuning_data_mask" / Path(name).with_suffix(".png"), gray(LINES))
    entries = [{"id": Path(name).stem, "image": name, "conversations": TALK} for name in NAMES]
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps([*entries, {"id": "t", "conversations": TEXT}]))
    return folder


def packed(source: Path, *more: str) -> int:
    return main(["pack", "--format", "unimrg", "--source", str(source), "--out", str(source.parent / "out"), *more])


def test_one_command_makes_shards_with_all_targets(released, tmp_path, capsys):
    assert packed(released) == 0 and "4 of 4 entries packed, 0 failed" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["verify", str(out)]) == 0 and main(["stats", str(out), "--sheet", str(tmp_path / "sheet.png")]) == 0
    samples = [decode_sample(key, fields).decoded() for key, fields in samples_of(out).items()]
    assert [sample.image_count for sample in samples] == [1, 1, 1, 0] and samples[3].picture("depth") is None
    stretched = np.round((DEPTH - 15.0) * (65535 / 239)).astype(int)
    for sample, truth in zip(samples, (stretched, stretched[::-1], stretched), strict=False):
        assert np.array_equal(sample.picture("depth").numpy(), truth), "under its own path, not its base name"
        assert np.array_equal(Segmentation("contours").picture(sample).numpy(), np.stack([LINES] * 3))
        assert Segmentation("regions").picture(sample) is None and Depth().picture(sample).max() == 255
    assert all(record["depth_kind"] == "relative_inverse" for record in records_of(out)[:3])


def test_packing_again_keeps_the_maps(released, tmp_path):
    assert packed(released) == 0
    assert pack_tars(str(tmp_path / "out"), tmp_path / "again") == 0
    for before, after in zip(samples_of(tmp_path / "out").values(), samples_of(tmp_path / "again").values(), strict=True):
        assert before.keys() == after.keys() and before.get("contours.png") == after.get("contours.png")


def test_only_depth_is_made_smaller(released, tmp_path):
    assert packed(released, "--target-size", "6") == 0 and main(["verify", str(tmp_path / "out")]) == 0
    first = next(iter(samples_of(tmp_path / "out").values()))
    assert pixels(first["depth.png"]).shape == (6, 10) and pixels(first["contours.png"]).shape == (12, 20)


def test_maps_of_the_same_shape_and_another_size_are_kept_and_counted(released, tmp_path, capsys):
    double = Image.fromarray(DEPTH).resize((2 * WIDTH, 2 * HEIGHT))
    write(released / "tuning_data_depth/gqa/images/1.png", gray(np.asarray(double)))
    assert packed(released) == 0 and main(["verify", str(tmp_path / "out")]) == 0
    said = "depth map of another size than its picture, in the same shape: kept"
    assert f"1 x {said}" in capsys.readouterr().out and read_manifest(tmp_path / "out")["notes"] == {said: 1}


def flat(path: Path) -> None:
    """What Depth Anything's own script writes: all maps in one folder."""
    write(path.parents[2] / path.name, path.read_bytes())
    path.unlink()


FAULTS = {
    "no depth map": ("depth", Path.unlink, "depth map: missing file in tuning_data_depth"),
    "no contours": ("mask", Path.unlink, "contours: missing file in tuning_data_mask"),
    "no folders": ("depth", flat, "depth map: in tuning_data_depth itself, not in the folder of its picture (1.png)"),
    "cut short": ("mask", lambda path: path.write_bytes(path.read_bytes()[:60]), "contours: damaged image"),
    "no picture": ("depth", lambda path: path.write_bytes(b"<html>"), "depth map: not an image"),
    "in colors": ("depth", lambda path: path.write_bytes(picture(3, WIDTH, HEIGHT, "png")), "depth map: a picture in colors"),
    "16 bits": ("mask", lambda path: path.write_bytes(encoded(DEPTH.astype(np.uint16))), "contours: a picture of mode I;16"),
    "turned": ("mask", lambda path: path.write_bytes(gray(LINES.T)), "contours: another shape than its picture (height and"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_entry_without_its_maps_is_left_out_and_said(released, tmp_path, capsys, fault):
    kind, spoil, reason = FAULTS[fault]
    spoil(released / f"tuning_data_{kind}/coco/train2017/1.png")
    assert packed(released) == 2 and "1 of 4 entries failed" in capsys.readouterr().err
    assert packed(released, "--max-failed-fraction", "0.25") == 0
    assert "3 of 4 entries packed, 1 failed" in (said := capsys.readouterr().out)
    assert f"1 x left out: {reason.partition(' (')[0]}" in said
    (failure,) = failures_of(tmp_path / "out")
    assert failure["reason"].startswith(reason) and failure["image"] == NAMES[0]


def test_folders_of_another_layout_are_refused(released, refusal):
    assert "give one folder, which has tuning_data" in refusal(packed(released, "--source", "a", "b"))
    assert "no such folder" in refusal(packed(released / "nothing"))
    (released / "tuning_data_mask").rename(released / "masks")
    assert "has no folder tuning_data_mask; unpack" in refusal(packed(released))
    assert "--target-size is for --format unimrg" in refusal(
        main(["pack", "--format", "wds", "--source", "x", "--target-size", "3", "--out", "out"])
    )
    (released / "masks").rename(released / "tuning_data_mask")
    assert "--target-size -1: must be at least 0" in refusal(packed(released, "--target-size", "-1"))
    (released / "llava_v1_5_mix665k.json").rename(released / "other.json")
    assert "llava_v1_5_mix665k.json: cannot be read" in refusal(packed(released))
    assert packed(released, "--json", str(released / "other.json")) == 0
