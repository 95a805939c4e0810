from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor

import megaunigame.tiny_world
from data_prep.scenes.samples import sample
from megaunigame.data.decode import META_FIELD, decode_sample
from megaunigame.judges.clip_filter import ClipConfig, ClipFilter
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.tiny_world import clip_training
from megaunigame.tiny_world.clip_training import (
    CLIP_FOLDER,
    ClipStage,
    clip_tokenizer,
    decode,
    evaluate_clip,
    text_ids,
    train_clip,
    with_random_codes,
)
from megaunigame.tiny_world.scenes import to_pixels
from megaunigame.tiny_world.sizes import CODES, IMAGE_SIZE, vq_config
from megaunigame.tiny_world.tokenizer_training import reconstruct
from tests.tiny_world.toy import interrupted, loop, toy_scenes

WEIGHTS = Path(megaunigame.tiny_world.__file__).parent / "weights"
CPU = torch.device("cpu")
PREFIX = "model.vqmodel."


@pytest.fixture(scope="module")
def vq() -> ImageTokenizer:
    """The image tokenizer of the shipped tiny Janus."""
    tokenizer = ImageTokenizer(vq_config())
    with safe_open(WEIGHTS / "janus" / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118 (not a dict)
        tokenizer.load_state_dict({name.removeprefix(PREFIX): file.get_tensor(name).float() for name in names})
    return tokenizer.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def rendered() -> tuple[Tensor, list[str]]:
    """Pictures (16, 3, H, W) in [-1, 1] of scenes nobody trained on, and their captions (all different)."""
    pictures: dict[str, Tensor] = {}
    for index in range(64):
        fields = {name: value for name, value in sample(77, "val", index, IMAGE_SIZE).items() if isinstance(value, bytes)}
        shown = decode_sample(str(index), {name: fields[name] for name in ("png", META_FIELD)})
        assert shown.image is not None
        pictures.setdefault(shown.meta["caption"], to_pixels(shown.image))
    captions = list(pictures)[:16]
    return torch.stack([pictures[caption] for caption in captions]), captions


def test_the_shipped_clip_tells_reconstructions_from_other_pictures(vq, rendered):
    sources, _ = rendered
    clip = ClipFilter(ClipConfig(model=str(WEIGHTS / "clip")), CPU)
    through, codes = reconstruct(vq, sources)
    spoiled = decode(vq, with_random_codes(codes, torch.full((len(codes),), 0.5), torch.Generator().manual_seed(0)))
    faithful, unrelated = clip.similarity(through, sources), clip.similarity(through.roll(1, 0), sources)
    assert clip.accepts(faithful).float().mean() >= 0.9
    assert (faithful > unrelated).float().mean() >= 0.9
    assert (faithful > clip.similarity(spoiled, sources)).float().mean() >= 0.9
    assert clip.accepts(unrelated).float().mean() <= 0.3


def test_the_shipped_clip_prefers_the_right_caption(vq, rendered):
    sources, captions = rendered
    clip = ClipFilter(ClipConfig(model=str(WEIGHTS / "clip"), compare="text"), CPU)
    through = reconstruct(vq, sources)[0]
    others = captions[1:] + captions[:1]
    assert (clip.similarity(through, texts=captions) > clip.similarity(through, texts=others)).float().mean() >= 0.9


def test_the_shipped_clip_is_small():
    assert sum(file.stat().st_size for file in (WEIGHTS / "clip").iterdir()) < 1_500_000


def test_the_filter_reads_texts_as_they_were_trained():
    clip = ClipFilter(ClipConfig(model=str(WEIGHTS / "clip"), compare="text"), CPU)
    tokenizer = clip_tokenizer(WEIGHTS / "janus")
    texts = ["a red cube left of a blue sphere", "a cube " * 40]
    expected = text_ids(tokenizer, texts)
    assert torch.equal(clip.tokenizer(texts), expected)
    assert (expected == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]  # the long one too: cut before the end, not after
    assert tokenizer.decode(expected[0], skip_special_tokens=True) == texts[0]


def test_random_codes_replace_the_share_asked_for():
    codes = torch.full((3, 64), CODES)  # no code: every replaced position shows
    changed = with_random_codes(codes, torch.tensor([0.0, 0.25, 1.0]), torch.Generator().manual_seed(0)) != codes
    assert changed.sum(1).tolist() == [0, 16, 64]
    assert changed[1].nonzero().flatten().tolist() != list(range(16))


@pytest.fixture(scope="module")
def scenes():
    scenes = toy_scenes(40)
    for meta in scenes.metas:
        meta["caption"] = " left of ".join(f"a {thing['color']} {thing['shape']}" for thing in meta["objects"])
    return scenes


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(clip_training, "BATCH", 8)
    monkeypatch.setattr(clip_training, "THROUGH", 16)


def test_an_interrupted_run_ends_with_the_same_weights(scenes, vq, small_batches, tmp_path):
    text = WEIGHTS / "janus"
    train_clip(scenes, vq, text, tmp_path / "whole", loop(5))
    with interrupted(ClipStage, at=3):
        train_clip(scenes, vq, text, tmp_path / "parts", loop(5))
    assert not (tmp_path / "parts" / CLIP_FOLDER).exists()
    train_clip(scenes, vq, text, tmp_path / "parts", loop(5))
    whole, parts = (load_file(tmp_path / run / CLIP_FOLDER / "open_clip_model.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_training_learns_and_the_folder_is_what_was_trained(scenes, vq, small_batches, tmp_path, monkeypatch):
    losses = []
    original = ClipStage.loss

    def recorded(self, step, generator):
        loss, numbers = original(self, step, generator)
        losses.append(loss.item())
        return loss, numbers

    monkeypatch.setattr(ClipStage, "loss", recorded)
    clip = train_clip(scenes, vq, WEIGHTS / "janus", tmp_path, loop(30))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])

    filter_ = ClipFilter(ClipConfig(model=str(tmp_path / CLIP_FOLDER), compare="text"), CPU)
    pixels, captions = scenes.batch("rgb", torch.arange(8)), [meta["caption"] for meta in scenes.metas[:8]]
    with torch.no_grad():
        texts = clip.encode_text(text_ids(clip_tokenizer(WEIGHTS / "janus"), captions))
        expected = torch.cosine_similarity(clip.encode_image(pixels), texts)
    assert torch.allclose(filter_.similarity(pixels, texts=captions), expected, atol=5e-3)  # weights are kept as float16


def test_the_report_has_every_comparison(scenes, vq, small_batches, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_training, "RETRIEVAL", 4)
    clip = train_clip(scenes, vq, WEIGHTS / "janus", tmp_path, loop(2))
    pairs = toy_scenes(8, seed=1)
    for row, meta in enumerate(pairs.metas):
        meta["changed"] = "color" if row < 4 else "count"
    report = evaluate_clip(clip, vq, clip_tokenizer(WEIGHTS / "janus"), scenes, pairs, count=24)
    assert set(report["cosine"]) == set(report["accepted"])
    assert {"through the tokenizer", "50 % random codes", "color changed", "count changed"} < set(report["cosine"])
    assert all(-1 <= low <= middle <= high <= 1 for low, middle, high in report["cosine"].values())
    assert all(list(shares.values()) == sorted(shares.values(), reverse=True) for shares in report["accepted"].values())
    assert 0 <= report["retrieval"]["real"] <= 1
