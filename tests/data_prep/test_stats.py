"""`stats` counts what is there, and its sheet shows it."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

from data_prep.__main__ import main
from data_prep.contact_sheet import CELL, GAP, TEXT_WIDTH, contact_sheet, id_colors
from data_prep.picture_statistics import PictureStatistics, histogram
from data_prep.shard_writer import Job, Shard, ShardSample
from megaunigame.data.decode import Sample
from tests.data.shard_files import encoded
from tests.data_prep.stored import write_whole
from tests.data_prep.toy_sets import TEXT


def test_chance_and_majority_per_kind_and_histograms(ood_scenes, capsys):
    assert main(["stats", str(ood_scenes)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ood: 30 samples, 3 shards,")
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert lines["exist"][2] == "50.0"
    assert "description" in lines
    assert lines["captions"][:4] == ["captions", "of", "30", "samples:"]
    assert lines["64-127"][-1] == "30"
    assert "of 30 samples, 30 with a picture:" in shown and "0 of 30 maps are constant" in shown


def test_only_so_many_samples_are_decoded(ood_scenes, refusal, capsys):
    assert main(["stats", str(ood_scenes), "--samples", "7"]) == 0
    assert "of 7 samples, 7 with a picture:" in capsys.readouterr().out
    assert "--samples 0: must be at least 1" in refusal(main(["stats", str(ood_scenes), "--samples", "0"]))


def test_picture_statistics_are_those_of_the_pictures():
    statistics = PictureStatistics()
    ids = torch.tensor([[0, 1, 1], [7, 7, 255]], dtype=torch.uint8)
    depth = torch.tensor([[0, 8191, 8192, 65535]], dtype=torch.int32)
    statistics.add(Sample("a", {}, image=torch.zeros(3, 100, 300, dtype=torch.uint8), segmentation=ids, depth=depth))
    flat = torch.zeros(1, 2, dtype=torch.int32)
    statistics.add(Sample("b", {}, image=torch.zeros(3, 2048, 3000, dtype=torch.uint8), segmentation=ids * 0, depth=flat))
    statistics.add(Sample("c", {}))
    assert statistics.shorter_sides == [100, 2048] and statistics.masks == [3, 0]
    assert statistics.depth.tolist() == [0.5 + 1, 0.25, 0, 0, 0, 0, 0, 0.25]
    shown = [line.split() for line in statistics.lines()]
    assert [line[0] for line in shown if line[-1] == "1"] == ["64-127", "2048", "0", "3-4"]
    assert "1 of 2 maps are constant" in " ".join(map(" ".join, shown))


def test_bars_are_in_proportion():
    lines = list(histogram("title", ["a", "b", "c", "d"], [0, 1, 4, 0]))
    assert lines[0] == "title"
    assert [(line.split()[0], line.count("█"), line.split()[-1]) for line in lines[1:]] == [("b", 10, "1"), ("c", 40, "4")]


def test_captions_text_rows_and_failures_without_targets(tmp_path, capsys):
    red = encoded(np.full((300, 600, 3), (255, 0, 0), np.uint8))
    samples: list[ShardSample] = [
        {"__key__": "a", "png": red, "json": json.dumps({"caption": "three short words"}).encode()},
        {"__key__": "b", "png": red, "json": json.dumps({"caption": "one"}).encode()},
        {"__key__": "c", "json": json.dumps({"conversations": TEXT}).encode()},
    ]
    job = Job(tmp_path, "x", {}, shards=1, shard=lambda k: Shard(samples=samples, failures=[{"key": "d", "reason": "gone"}]))
    write_whole(job, max_failed_fraction=0.5)
    assert main(["stats", str(tmp_path), "--sheet", str(tmp_path / "sheet.png"), "--sheet-samples", "2"]) == 0
    shown = capsys.readouterr().out
    assert "captions of 2 samples: 1 to 3 words, 2.0 on average" in shown
    assert "1 entries failed, see failures.jsonl" in shown
    assert "of 3 samples, 2 with a picture:" in shown
    assert "depth (%" not in shown and "masks per" not in shown
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (CELL + 2 * GAP + TEXT_WIDTH, 2 * (CELL + GAP) + GAP)
        assert sheet.getpixel((GAP + CELL // 2, GAP + CELL // 2)) == (255, 0, 0)


def test_the_sheet_shows_image_depth_and_segmentation_of_each_sample():
    image = torch.zeros(3, 10, 10, dtype=torch.uint8)
    image[1] = 200
    depth, ids = torch.full((10, 10), 65535, dtype=torch.int32), torch.full((10, 10), 5, dtype=torch.uint8)
    full = Sample("full", {"caption": "c"}, image=image, depth=depth, segmentation=ids)
    sheet = np.array(contact_sheet([full, Sample("text", {"questions": ["what ?"]})]))
    middles = [GAP + column * (CELL + GAP) + CELL // 2 for column in range(3)]
    rows = [GAP + row * (CELL + GAP) + CELL // 2 for row in range(2)]
    assert [sheet[rows[0], x].tolist() for x in middles] == [[0, 200, 0], [255, 255, 255], id_colors()[5].tolist()]
    assert [sheet[rows[1], x].tolist() for x in middles] == 3 * [[225, 225, 225]]
    text = sheet[:, middles[-1] + CELL // 2 + GAP :]
    assert all((text[top : top + 40] < 100).any() for top in (GAP, 2 * GAP + CELL)), "key and text stand at the right"


def test_the_colors_of_ids_differ():
    colors = id_colors()
    assert colors.shape == (256, 3) and colors[0].tolist() == [0, 0, 0]
    assert len({tuple(color) for color in colors.tolist()}) == 256
