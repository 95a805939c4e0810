"""Shards in, shards with targets out: same bytes from any number of ranks, and nothing bad passes silently."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from data_prep import annotator
from data_prep.__main__ import main
from data_prep.annotator import Annotator, Item
from data_prep.statistics import read_manifest
from data_prep.teachers.sam import Sam
from data_prep.teachers.tokenizer import Tokenizer
from megaunigame.data.decode import decode_sample
from tests.data.shard_files import encoded, write_tar
from tests.data_prep.stored import content, failures_of
from tests.data_prep.stored import samples_of as stored
from tests.data_prep.tiny_teachers import (
    KEEP_ALL,
    depth_checkpoint,
    picture,
    sam2_checkpoint,
    sam_checkpoint,
    sample_of,
    write_source,
)
from tests.data_prep.toy_sets import cc3m, pack_tars, pack_vqa, write_vqa
from tests.multi_process.launcher import REPOSITORY
from tests.refusals import refused

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
CLASSIC = ("--tasks", "segmentation", "--segmentation-teacher", "classic")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    depth_checkpoint(folder / "depth")
    sam_checkpoint(folder / "sam")
    sam2_checkpoint(folder / "sam2")
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory) -> Path:
    """`source` with classic regions, written in one go."""
    folder = tmp_path_factory.mktemp("whole")
    assert annotate(source, folder, *CLASSIC) == 0
    return folder


def annotate(source: Path, out: Path, *more: str) -> int:
    return main(["annotate", str(source), "--out", str(out), "--batch", "2", *more])


def all_three(models: Path, sam: str = "sam") -> list[str]:
    settings = [f"segmentation.{name}={value}" for name, value in KEEP_ALL.items()]
    return [
        *("--tasks", "depth,segmentation,clip", "--depth-model", str(models / "depth")),
        *("--segmentation-model", str(models / sam), "--clip-model", "tiny-random", "--set", *settings),
    ]


@pytest.mark.parametrize("sam", ["sam", "sam2"])
def test_all_tasks_on_checkpoints_loaded_like_real_ones(sam, source, models, tmp_path, capsys):
    assert annotate(source, tmp_path / "out", *all_three(models, sam), "--target-size", "48", "--dtype", "bfloat16") == 0
    assert "24 pictures in" in capsys.readouterr().out
    before, after = stored(source), stored(tmp_path / "out")
    assert list(after) == list(before) == [sample_of(k)["__key__"] for k in range(30)]
    similarities = set()
    for key, fields in after.items():
        if "jpg" not in fields:
            assert fields == before[key]
            continue
        assert set(fields) == {"jpg", "json", "depth.png", "seg.png"}
        assert fields["jpg"] == before[key]["jpg"]
        sample, meta = decode_sample(key, fields), json.loads(before[key]["json"])
        height, width = sample.image.shape[1:]
        depth, ids = sample.picture("depth"), sample.picture("segmentation")
        assert depth.shape == ids.shape == ((48, 48) if height == width else (height, width))
        assert (depth.min(), depth.max()) == (0, 65535)
        added = {name: value for name, value in sample.meta.items() if name not in meta}
        assert {name: sample.meta[name] for name in meta} == meta
        assert set(added) == {"depth_kind", "depth_min", "depth_max", "segmentation_masks", "clip_similarity"}
        assert added["depth_max"] > added["depth_min"] and added["segmentation_masks"] > 1
        assert ids.max() <= added["segmentation_masks"]
        similarities.add(added["clip_similarity"])
    assert len(similarities) == 24 and max(map(abs, similarities)) < 1
    manifest = read_manifest(tmp_path / "out")
    assert manifest["name"] == "toy" and [shard["samples"] for shard in manifest["shards"]] == [10, 10, 10]
    teachers = manifest["config"]["teachers"]
    assert teachers["depth"]["teacher"] == "depth_anything" and teachers["depth"]["dtype"] == "bfloat16"
    assert teachers["segmentation"]["points_per_side"] == 2 and len(teachers["segmentation"]["weights_sha256"]) == 64
    assert manifest["config"]["source"]["config"] == {"command": "toy", "samples": 30}
    index = json.loads((tmp_path / "out" / "toy-000000.idx.json").read_text())
    assert "clip_similarity" in index["samples"][0]["columns"]  # a training run can filter on it
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_photographs_from_files_to_verified_shards(models, tmp_path, forked):
    pack = ["pack", "--format", "llava-json", "--json", str(REPOSITORY / "data_prep/examples/photographs.json")]
    assert main([*pack, "--image-root", str(PHOTOGRAPHS), "--out", str(tmp_path / "packed"), "--workers", "2"]) == 0
    assert main(["verify", str(tmp_path / "packed")]) == 0
    settings = ["--depth-model", str(models / "depth"), "--segmentation-teacher", "classic", "--target-size", "128"]
    settings += ["--set", "segmentation.longest_side=128", "segmentation.min_size=20"]  # a tenth of the default's time
    assert annotate(tmp_path / "packed", tmp_path / "out", "--tasks", "segmentation,depth", *settings) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    samples = [decode_sample(key, fields) for key, fields in stored(tmp_path / "out").items()]
    with_image = [sample for sample in samples if sample.image is not None]
    assert len(samples) >= 20 and len(with_image) == len(samples) - 1
    first_turns = [sample.meta["conversations"][0]["value"] for sample in samples]
    assert sum(turn.startswith("<image>\n") for turn in first_turns) == len(with_image)
    for sample in with_image:
        size = sample.picture("depth").shape
        assert size == sample.picture("segmentation").shape and min(size) <= 128
        assert sample.meta["segmentation_masks"] >= 1
    assert np.median([sample.meta["segmentation_masks"] for sample in with_image]) > 10


@pytest.mark.parametrize("form", ["vqa", "cc3m"])
def test_published_forms_from_files_to_verified_shards(form, models, tmp_path):
    if form == "vqa":
        assert pack_vqa(write_vqa(tmp_path) | {"out": tmp_path / "packed"}) == 0
    else:
        cc3m(tmp_path / "cc3m")
        assert pack_tars(str(tmp_path / "cc3m"), tmp_path / "packed") == 0
    assert annotate(tmp_path / "packed", tmp_path / "out", *all_three(models, "sam2"), "--existing", "replace") == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    before = stored(tmp_path / "packed")
    samples = [decode_sample(key, fields) for key, fields in stored(tmp_path / "out").items()]
    assert [sample.key for sample in samples] == list(before) and len(samples) == (3 if form == "vqa" else 12)
    for sample in samples:
        depth, ids = sample.picture("depth"), sample.picture("segmentation")
        assert depth.shape == ids.shape == (12, 20) and depth.max() == 65535
        assert -1 < sample.meta["clip_similarity"] < 1 and ("answers" in sample.meta) == (form == "vqa")


def test_killed_in_a_shard_it_continues_to_the_same_bytes(source, whole, tmp_path):
    """By a real SIGKILL; `test_interruptions.py` has all other moments."""
    slow = (  # so that the kill hits the middle of a shard
        "import sys, time\nfrom data_prep import annotator\nfrom data_prep.__main__ import main\n"
        "predict = annotator._predictions\n"
        "annotator._predictions = lambda *given: (time.sleep(0.3), predict(*given))[1]\nsys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", slow, "annotate", str(source), "--out", str(tmp_path), "--batch", "1", *CLASSIC]
    process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    deadline = time.monotonic() + 120
    while not (tmp_path / "toy-000001.tar.tmp").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = content(tmp_path)
    assert left["toy-000000.tar"] == content(whole)["toy-000000.tar"]
    assert "toy-000001.tar.tmp" in left and not {"toy-000001.tar", "dataset.json"} & set(left)
    assert annotate(source, tmp_path, *CLASSIC) == 0
    assert content(tmp_path) == content(whole)


def test_ranks_together_write_what_one_process_writes(source, whole, tmp_path):
    assert annotate(source, tmp_path, *CLASSIC, "--rank", "1", "--world", "2") == 0
    assert set(content(tmp_path)) == {
        *(f"toy-000001{end}" for end in (".tar", ".idx.json", "_stats.json")),
        "unfinished.json",
    }
    assert annotate(source, tmp_path, *CLASSIC, "--rank", "0", "--world", "2", "--threads", "1") == 0
    assert content(tmp_path) == content(whole)


def test_a_second_run_has_nothing_to_do(source, whole, capsys):
    before = content(whole)
    assert annotate(source, whole, *CLASSIC) == 0
    assert "nothing was left to annotate" in capsys.readouterr().out
    assert content(whole) == before


@pytest.mark.parametrize(
    "change", [["--set", "segmentation.scale=30"], ["--target-size", "32"], ["--segmentation-teacher", "file"]]
)
def test_other_teachers_and_settings_need_overwrite(change, source, whole, refusal):
    before = content(whole)
    folder = ["--set", f"segmentation.folder={source}"] if "file" in change else []
    assert "--overwrite" in refusal(annotate(source, whole, *CLASSIC, *change, *folder))
    assert content(whole) == before


def test_samples_without_a_usable_prediction_fail_and_can_be_retried(source, tmp_path, refusal):
    maps, out = tmp_path / "maps", tmp_path / "out"
    maps.mkdir()
    for number in range(30):
        np.save(maps / f"{number:04d}.npy", np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    np.save(maps / "0003.npy", np.array([[1.0, np.nan]]))
    np.save(maps / "0005.npy", np.full((3, 4), 7.0))
    (maps / "0011.npy").unlink()
    settings = ["--tasks", "depth", "--depth-teacher", "file", "--set", f"depth.folder={maps}", "depth.pattern={key}.npy"]
    said = refusal(annotate(source, out, *settings))
    assert "1 of 30 entries failed" in said and "--max-failed-fraction" in said  # at the first one, not at the end
    assert not (out / "dataset.json").exists()

    assert annotate(source, out, *settings, "--max-failed-fraction", "0.1") == 0
    failures = failures_of(out)
    assert [failure["key"] for failure in failures] == ["0003", "0011"]
    assert "NaN or infinite depth" in failures[0]["reason"] and "0011.npy: No such file" in failures[1]["reason"]
    found = stored(out)
    assert len(found) == 28 and not {"0003", "0011"} & set(found)
    assert not decode_sample("0005", found["0005"]).picture("depth").any()  # constant: zeros
    assert main(["verify", str(out)]) == 0

    untouched = (out / "toy-000002.tar").stat().st_mtime_ns
    for key in ("0003", "0011"):
        np.save(maps / f"{key}.npy", np.eye(3))
    assert annotate(source, out, *settings, "--retry-failed") == 0
    assert len(stored(out)) == 30 and not (out / "failures.jsonl").exists()
    assert (out / "toy-000002.tar").stat().st_mtime_ns == untouched


def test_a_model_that_gives_nan_fills_no_shard(source, tmp_path, refusal):
    broken = depth_checkpoint(tmp_path / "model", damage=float("nan"))
    said = refusal(annotate(source, tmp_path / "out", "--tasks", "depth", "--depth-model", str(broken)))
    assert "the depth teacher gave NaN or infinite depth" in said
    assert not list((tmp_path / "out").glob("*.tar"))


def test_pictures_that_cannot_be_decoded_fail_with_the_reason(tmp_path):
    members = [
        *(("a.json", b"{}"), ("a.png", encoded(picture(1, 20, 20)))),
        *(("b.json", b"{}"), ("b.png", encoded(picture(2, 20, 20))[:200])),
        *(("c.json", b"[]"), ("c.png", encoded(picture(3, 20, 20)))),
    ]
    write_tar(tmp_path / "in.tar", members)
    assert annotate(tmp_path, tmp_path / "out", *CLASSIC, "--max-failed-fraction", "0.7", "--name", "mine") == 0
    assert list(stored(tmp_path / "out")) == ["a"] and (tmp_path / "out" / "mine-000000.tar").is_file()
    reasons = [failure["reason"] for failure in failures_of(tmp_path / "out")]
    assert "not a readable" in reasons[0] and "object" in reasons[1]


def test_targets_that_are_there_are_refused_kept_or_replaced(source, whole, models, tmp_path, refusal):
    assert "already has segmentation" in refusal(annotate(whole, tmp_path / "again", *CLASSIC))
    assert not (tmp_path / "again").exists()
    both = ["--tasks", "depth,segmentation", "--segmentation-teacher", "classic", "--depth-model", str(models / "depth")]
    coarse = ["--set", "segmentation.scale=1000", "segmentation.min_size=500"]
    assert annotate(whole, tmp_path / "kept", *both, *coarse, "--existing", "keep") == 0
    assert annotate(whole, tmp_path / "replaced", *both, *coarse, "--existing", "replace") == 0
    before, kept, replaced = stored(whole), stored(tmp_path / "kept"), stored(tmp_path / "replaced")
    pictured = [key for key in before if "jpg" in before[key]]
    assert all("depth.png" in kept[key] and "depth.png" in replaced[key] for key in pictured)
    assert all(kept[key]["seg.png"] == before[key]["seg.png"] for key in pictured)
    assert any(replaced[key]["seg.png"] != before[key]["seg.png"] for key in pictured)

    clip = ["--tasks", "clip", "--clip-model", "tiny-random"]
    assert annotate(source, tmp_path / "clip", *clip) == 0
    assert "sample '0000' already has clip" in refusal(annotate(tmp_path / "clip", tmp_path / "clip2", *clip))


def test_a_picture_is_decoded_once_for_all_tasks(source, models, tmp_path, monkeypatch):
    decoded: list[Item] = []
    decode = Annotator._decode

    def counting(self: Annotator, place: tuple[int, int]) -> Item:
        decoded.append(decode(self, place))
        return decoded[-1]

    seen: dict[str, list[int]] = {}
    predictions = annotator._predictions

    def watching(task, teacher, samples):  # noqa: ANN001, ANN202
        seen.setdefault(type(teacher).__name__, []).extend(id(sample.image) for sample in samples)
        return predictions(task, teacher, samples)

    monkeypatch.setattr(Annotator, "_decode", counting)
    monkeypatch.setattr(annotator, "_predictions", watching)
    assert annotate(source, tmp_path, *all_three(models)) == 0
    assert sorted(item.key for item in decoded) == [f"{k:04d}" for k in range(30)]
    assert seen["DepthAnything"] == seen["Sam"] == seen["OpenClip"] and len(seen["Sam"]) == 24


@pytest.mark.parametrize(
    ("kind", "advice"), [(Sam, "smaller --batch, --dtype bfloat16, or"), (Tokenizer, "smaller --batch, or")]
)
def test_out_of_memory_gives_advice_that_helps(kind, advice):
    """Codes are float32 whatever --dtype says."""

    class Full(kind):
        def __init__(self):
            pass

        def predict(self, samples):
            raise torch.OutOfMemoryError("no room")

    with refused(f"The teacher of {kind.tasks[0]} ran out of memory: no room.", f"Type a {advice} another --device."):
        annotator._predictions(kind.tasks[0], Full(), [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "depth,dept"], "legal are some of depth,segmentation,clip"),
        (["--tasks", "clip,clip"], "each once"),
        ([*CLASSIC, "--batch", "0"], "--batch 0: must be at least 1"),
        ([*CLASSIC, "--rank", "2", "--world", "2"], "ranks count from 0 to world - 1"),
        ([*CLASSIC, "--max-failed-fraction", "2"], "a fraction from 0 to 1"),
        ([*CLASSIC, "--name", "a.b"], "--name a.b"),
        ([*CLASSIC, "--device", "quantum"], "--device quantum"),
        ([*CLASSIC, "--set", "scale=3"], "write TASK.KEY=VALUE"),
        ([*CLASSIC, "--set", "depth.size=3"], "'depth' is not among the tasks"),
        ([*CLASSIC, "--depth-model", "x"], "'depth' is not among the tasks"),
        ([*CLASSIC, "--set", "segmentation.scal=3"], "Did you mean 'scale'?"),
        ([*CLASSIC, "--set", "segmentation.scale=3", "segmentation.scale=4"], "given twice"),
        (["--tasks", "depth", "--depth-teacher", "classic"], "Legal: depth_anything, file"),
        (["--tasks", "depth", "--depth-model", "./nowhere"], "./nowhere: no such folder"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(arguments, said, source, tmp_path, refusal):
    message = refusal(annotate(source, tmp_path / "out", *arguments))
    assert said in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_sources_that_cannot_be_annotated(source, tmp_path, refusal):
    assert "never changed in place" in refusal(annotate(source, source, *CLASSIC))
    assert "No shards" in refusal(annotate(tmp_path / "nowhere", tmp_path / "out", *CLASSIC))
    write_tar(tmp_path / "pictures" / "a.tar", [("a.png", encoded(picture(1, 8, 8)))])
    write_tar(tmp_path / "texts" / "a.tar", [("a.json", b"{}")])
    assert "pack --format wds" in refusal(annotate(tmp_path / "pictures", tmp_path / "out", *CLASSIC))
    assert "no sample has a picture" in refusal(annotate(tmp_path / "texts", tmp_path / "out", *CLASSIC))
    assert not (tmp_path / "out").exists()


def test_a_viewer_opens_the_segmentation_in_colors(whole):
    fields = next(fields for fields in stored(whole).values() if "seg.png" in fields)
    with Image.open(io.BytesIO(fields["seg.png"])) as opened:
        colors = np.unique(np.array(opened.convert("RGB")).reshape(-1, 3), axis=0)
        assert opened.mode == "P" and len(colors) == len(np.unique(opened)) > 2
