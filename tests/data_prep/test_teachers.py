"""Teachers: real code paths on tiny random checkpoints, and what the ids and targets made of predictions hold."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

from data_prep.target_fields import clip_target, depth_target, segmentation_target, target_size
from data_prep.teachers.base import Failure, Machine, Teacher, load_teacher
from data_prep.teachers.ids import ids_from_labels, ids_from_masks
from data_prep.teachers.pretrained import license_of
from megaunigame.data.decode import Sample, decode_sample
from megaunigame.errors import ConfigError, ModelError
from megaunigame.judges.clip import FrozenClip
from tests.data_prep.stored import pixels
from tests.data_prep.tiny_teachers import KEEP_ALL, depth_checkpoint, picture, sam2_checkpoint, sam_checkpoint
from tests.data_prep.toy_sets import TALK

CPU = torch.device("cpu")
FLOAT32 = Machine(CPU, torch.float32, 2)
BFLOAT16 = Machine(CPU, torch.bfloat16, 2)


def seen(number: int = 0, height: int = 40, width: int = 56, **meta: object) -> Sample:
    pixels = torch.from_numpy(picture(number, height, width)).permute(2, 0, 1).contiguous()
    return Sample(key=f"k{number}", meta=meta, image=pixels)


def sam(folder: Path, machine: Machine = FLOAT32, **settings: object) -> Teacher:
    return load_teacher("segmentation", "sam", {"model": str(folder), **settings}, machine)


def depth_anything(folder: Path, machine: Machine = FLOAT32, **settings: object) -> Teacher:
    return load_teacher("depth", "depth_anything", {"model": str(folder), **settings}, machine)


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory) -> Path:
    return depth_checkpoint(tmp_path_factory.mktemp("models") / "Depth-Anything-V2-Large-hf")


@pytest.fixture(scope="module", params=[sam_checkpoint, sam2_checkpoint], ids=["sam", "sam2"])
def sam_folder(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp("models") / request.param.__name__)


def test_depth_is_what_the_pipeline_of_transformers_predicts(depth_folder):
    samples = [seen(0, 56, 84), seen(1, 84, 56), seen(2, 56, 84), seen(3, 56, 84), seen(4, 56, 56)]
    depths = depth_anything(depth_folder).predict(samples)
    reference = pipeline("depth-estimation", model=str(depth_folder))
    for sample, depth in zip(samples, depths, strict=True):
        expected = reference(Image.fromarray(sample.image.permute(1, 2, 0).numpy()))["predicted_depth"].numpy()
        assert depth.shape == tuple(sample.image.shape[1:])  # these sizes need no resizing, on neither side
        assert depth.max() > depth.min()
        np.testing.assert_allclose(depth, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_depth_size_and_bfloat16(depth_folder):
    (full,) = depth_anything(depth_folder, size=28).predict([seen(0, 80, 160)])
    assert full.shape == (28, 56)
    (half,) = depth_anything(depth_folder, BFLOAT16, size=28).predict([seen(0, 80, 160)])
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.1 * full.max()


def test_masks_are_those_of_the_pipeline_of_transformers(sam_folder):
    sample = seen()
    (ids,) = sam(sam_folder, **KEEP_ALL).predict([sample])
    masks = pipeline("mask-generation", model=str(sam_folder))(
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()),
        points_per_crop=2,
        pred_iou_thresh=-10.0,
        stability_score_thresh=0.0,
        crops_nms_thresh=1.0,
    )["masks"]
    assert ids.dtype == np.uint8 and len(masks) > 1
    np.testing.assert_array_equal(ids, ids_from_masks([mask.numpy() for mask in masks], 40, 56))
    assert sam(sam_folder, BFLOAT16, **KEEP_ALL).predict([sample])[0].max() > 0


def test_sam2_in_the_form_its_authors_publish_it(tmp_path):
    """Their folders are of the video model, and name the image processor as transformers 4 did."""
    folder = sam2_checkpoint(tmp_path)
    expected = sam(folder, **KEEP_ALL)
    for name, old, new in (
        ("config.json", '"model_type": "sam2"', '"model_type": "sam2_video"'),
        ("preprocessor_config.json", '"Sam2ImageProcessor"', '"Sam2ImageProcessorFast"'),
    ):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    teacher = sam(folder, **KEEP_ALL)
    assert teacher.identity == expected.identity
    np.testing.assert_array_equal(teacher.predict([seen()])[0], expected.predict([seen()])[0])


def test_no_mask_above_the_thresholds_gives_an_empty_map(sam_folder):
    (ids,) = sam(sam_folder, points_per_side=2, points_per_batch=3).predict([seen()])
    assert ids.shape == (40, 56) and ids.max() == 0


def test_large_pictures_are_shrunk_before_sam_sees_them(sam_folder):
    (ids,) = sam(sam_folder, **KEEP_ALL, longest_side=30).predict([seen(0, 40, 60)])
    assert ids.shape == (20, 30)


def test_a_sam_that_gives_nan_fails_instead_of_seeing_nothing(tmp_path):
    (prediction,) = sam(sam_checkpoint(tmp_path / "sam", damage=float("nan"))).predict([seen()])
    assert isinstance(prediction, Failure) and "NaN" in prediction.reason


def test_identity_names_weights_settings_and_license(depth_folder, tmp_path):
    first = depth_anything(depth_folder).identity
    assert first["model"] == "Depth-Anything-V2-Large-hf" and first["license"].startswith("CC-BY-NC-4.0")
    assert first["weights"] > 100_000 and first["dtype"] == "float32" and first["size"] == 0
    assert depth_anything(depth_folder, Machine(CPU, torch.float32, 7)).identity == first
    elsewhere = depth_checkpoint(tmp_path / depth_folder.name)
    assert depth_anything(elsewhere).identity == first
    depth_checkpoint(elsewhere, damage=0.125)
    changed = depth_anything(elsewhere).identity
    assert {key for key in first if first[key] != changed[key]} == {"weights_sha256"}


@pytest.mark.parametrize(
    ("model", "license"),
    [
        ("depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0"),
        ("depth-anything/Depth-Anything-V2-Base-hf", "CC-BY-NC-4.0 (no commercial use)"),
        ("models/Depth-Anything-V2-Large-hf", "CC-BY-NC-4.0 (no commercial use)"),
        ("facebook/sam-vit-huge", "Apache-2.0"),
        ("facebook/sam2.1-hiera-tiny", "Apache-2.0"),
        ("somebody/my-model", "not known here: see the model's card"),
    ],
)
def test_license_note(model, license):
    assert license_of(model) == license


def test_classic_regions_follow_colors_and_are_the_same_every_time():
    flat = np.zeros((3, 40, 56), dtype=np.uint8)
    flat[0, :, :20] = 250
    sample = Sample(key="flat", meta={}, image=torch.from_numpy(flat))
    teacher = load_teacher("segmentation", "classic", {"sigma": 0.0}, FLOAT32)
    (ids,) = teacher.predict([sample])
    np.testing.assert_array_equal(ids, np.where(np.arange(56) < 20, 2, 1)[None].repeat(40, axis=0))
    np.testing.assert_array_equal(teacher.predict([sample])[0], ids)
    assert teacher.identity["method"] == "felzenszwalb"


def test_files_give_depth_and_ids(tmp_path):
    ramp = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(ramp).save(tmp_path / "k0.png")
    Image.fromarray((ramp // 256).astype(np.uint8)).save(tmp_path / "k1.png")
    np.save(tmp_path / "k2.npy", ramp / 7.0)
    Image.fromarray(np.zeros((3, 4, 3), dtype=np.uint8)).save(tmp_path / "k3.png")
    (tmp_path / "k4.png").write_bytes(b"no picture")
    settings = {"folder": str(tmp_path), "pattern": "{key}.{suffix}"}
    teacher = load_teacher("depth", "file", settings, FLOAT32)
    samples = [seen(k, suffix="npy" if k == 2 else "png") for k in range(6)]
    sixteen, eight, floats, *failures = teacher.predict(samples)
    np.testing.assert_array_equal(sixteen, ramp)
    np.testing.assert_array_equal(eight, ramp // 256)
    np.testing.assert_allclose(floats, ramp / 7.0, rtol=1e-6)
    said = [failure.reason for failure in failures]
    assert "mode RGB" in said[0] and "not an image" in said[1] and "k5.png: No such file" in said[2]
    assert "needs 'suffix'" in teacher.predict([seen()])[0].reason
    assert "leads out" in teacher.predict([seen(suffix="/../../x")])[0].reason

    labels = np.array([[0, 900, 900, 7], [0, 900, 900, 7], [0, 900, 900, 7]])
    np.save(tmp_path / "k0.npy", labels)
    np.save(tmp_path / "k1.npy", labels / 2)
    indexed = Image.fromarray(np.array([[3, 0, 1, 1]], dtype=np.uint8))
    indexed.putpalette([0, 0, 0, 9, 9, 9, 5, 5, 5, 7, 7, 7])
    indexed.save(tmp_path / "k2.png")
    teacher = load_teacher("segmentation", "file", settings, FLOAT32)
    large, fractions, palette = teacher.predict([seen(k, suffix="png" if k == 2 else "npy") for k in range(3)])
    np.testing.assert_array_equal(large, [[0, 1, 1, 2]] * 3)
    assert "float64" in fractions.reason
    np.testing.assert_array_equal(palette, [[2, 0, 1, 1]])


def test_clip_compares_with_the_caption_or_the_first_question_and_answer():
    teacher = load_teacher("clip", "open_clip", {"model": "tiny-random"}, FLOAT32)
    samples = [seen(0, caption="a block"), seen(1, 64, 64, conversations=TALK), seen(2), seen(3, caption=" ")]
    first, second, *failures = teacher.predict(samples)
    assert all("no caption" in failure.reason for failure in failures)
    clip = FrozenClip("tiny-random", "", True, CPU)
    for sample, text, got in ((samples[0], "a block", first), (samples[1], "what ? that", second)):
        pixels = clip.embed_inputs(clip.preprocess(sample.image[None] / 127.5 - 1))
        assert got == pytest.approx((pixels * clip.embed_texts([text])).sum().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("task", "name", "settings", "said"),
    [
        ("depth", "clasic", {}, "Did you mean 'classic'?"),
        ("depth", "classic", {}, "gives segmentation, not depth. Legal: depth_anything, file"),
        ("clip", "sam", {}, "Legal: open_clip"),
        ("depth", "depth_anything", {"size": -1}, "depth.size must be at least 0; got -1"),
        ("depth", "depth_anything", {"modle": "x"}, "Did you mean 'model'?"),
        ("segmentation", "sam", {"points_per_side": 0}, "segmentation.points_per_side must be at least 1; got 0"),
        ("segmentation", "sam", {"pred_iou_thresh": "high"}, "segmentation.pred_iou_thresh"),
        ("segmentation", "classic", {"longest_side": 0}, "segmentation.longest_side must be at least 1; got 0"),
        ("depth", "file", {}, "--set depth.folder=PATH"),
        ("clip", "open_clip", {}, "clip.pretrained is empty"),
    ],
)
def test_wrong_names_and_settings_say_what_is_legal(task, name, settings, said):
    with pytest.raises(ConfigError) as refused:
        load_teacher(task, name, settings, FLOAT32)
    assert said in str(refused.value)


def test_models_that_are_absent_incomplete_or_of_another_kind_are_refused(depth_folder, tmp_path):
    def refusal(task: str, name: str, model: Path | str) -> str:
        with pytest.raises(ModelError) as refused:
            load_teacher(task, name, {"model": str(model)}, FLOAT32)
        return str(refused.value)

    assert "no such folder" in refusal("depth", "depth_anything", tmp_path / "nowhere")
    assert "hub id" in refusal("segmentation", "sam", "nobody/nothing")
    assert "cannot be loaded as a model for MaskGeneration" in refusal("segmentation", "sam", depth_folder)
    cut = depth_checkpoint(tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    del weights["head.conv1.weight"]
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights, for example head.conv1.weight" in refusal("depth", "depth_anything", cut)
    metric = depth_checkpoint(tmp_path / "metric")
    config = metric / "config.json"
    config.write_text(config.read_text().replace('"relative"', '"metric"'))
    assert "gives distances" in refusal("depth", "depth_anything", metric)


@given(st.lists(arrays(bool, (5, 7)), max_size=8))
def test_ids_of_masks_fall_with_area_and_small_ones_lie_on_top(masks: list[np.ndarray]):
    ids = ids_from_masks(masks, 5, 7)
    falling = sorted((mask for mask in masks if mask.any()), key=lambda mask: -int(mask.sum()))
    for y, x in np.ndindex(5, 7):
        over = [number for number, mask in enumerate(falling, start=1) if mask[y, x]]
        assert ids[y, x] == max(over, default=0)


@pytest.mark.parametrize("form", ["labels", "masks"])
def test_of_more_than_255_masks_the_largest_stay(form):
    labels = np.repeat(np.arange(1, 301), np.arange(1, 301))[None]  # label k has k pixels
    masks = [labels == k for k in range(1, 301)]
    ids = ids_from_labels(labels) if form == "labels" else ids_from_masks(masks, *labels.shape)
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, np.where(labels > 45, 301 - labels, 0))


@given(
    arrays(np.float32, (4, 6), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.sampled_from([(4, 6), (8, 12), (2, 3)])
)
def test_depth_png_spans_all_levels_and_keeps_the_order(depth, size):
    fields, numbers = depth_target(depth, size)
    levels = pixels(fields["depth.png"]).astype(np.int64)
    assert levels.shape == size
    if numbers["depth_max"] == numbers["depth_min"]:
        assert not levels.any()
        return
    assert (levels.min(), levels.max()) == (0, 65535)
    if size == depth.shape:
        order = np.argsort(depth.ravel(), kind="stable")
        assert (np.diff(levels.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_targets_of_no_number_are_refused(value):
    with pytest.raises(ValueError, match="NaN or infinite depth"):
        depth_target(np.array([[0.0, value]], dtype=np.float32), (1, 2))
    with pytest.raises(ValueError, match="NaN or infinite similarity"):
        clip_target(value, (1, 2))


@pytest.mark.parametrize("most", [0, 1, 2, 15, 16, 255])
def test_ids_survive_the_png_whatever_their_number(most):
    ids = (np.arange(600, dtype=np.int64).reshape(20, 30) % (most + 1)).astype(np.uint8)
    fields, numbers = segmentation_target(ids, (20, 30))
    assert numbers == {"segmentation_masks": most}
    back = decode_sample("k", {"json": b"{}", **fields}).picture("segmentation")
    assert back is not None
    np.testing.assert_array_equal(back.numpy(), ids)


def test_masks_that_are_made_smaller_have_ids_of_the_picture_alone():
    """Between id 10 and id 200 a mean would be an id of another object."""
    ids = np.full((40, 60), 10, dtype=np.uint8)
    ids[:, 31:] = 200  # a border inside a pixel of the smaller picture
    fields, numbers = segmentation_target(ids, (20, 30))
    back = decode_sample("k", {"json": b"{}", **fields}).picture("segmentation")
    assert back is not None and back.shape[-2:] == (20, 30) and numbers == {"segmentation_masks": 200}
    assert back.unique().tolist() == [10, 200] and (back[..., :15] == 10).all() and (back[..., 16:] == 200).all()


@pytest.mark.parametrize(
    ("shorter", "expected"), [(0, (300, 400)), (150, (150, 200)), (300, (300, 400)), (512, (300, 400)), (7, (7, 9))]
)
def test_target_size_bounds_the_shorter_side(shorter, expected):
    assert target_size(300, 400, shorter) == expected
    assert target_size(400, 300, shorter) == expected[::-1]
