from __future__ import annotations

import json
import shutil
import socket

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from megaunigame.errors import ConfigError
from megaunigame.judges.clip import TINY_MODEL, TINY_RANDOM
from megaunigame.judges.clip_filter import ClipConfig, ClipFilter
from megaunigame.settings import fill

CPU = torch.device("cpu")
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic", "resize_mode": "shortest"}
HUB_TOKENIZER = TINY_MODEL | {"text_cfg": TINY_MODEL["text_cfg"] | {"hf_tokenizer_name": "nobody/nothing"}}


def tiny(**changes) -> ClipFilter:
    return ClipFilter(ClipConfig(model=TINY_RANDOM, **changes), CPU)


def random_pictures(count: int, height: int = 48, width: int = 48, seed: int = 0) -> Tensor:
    """Bytes, as pictures in [-1, 1]: what PIL can hold exactly."""
    bytes_ = torch.randint(256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    return bytes_ / 127.5 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny random CLIP as a folder, with another preprocessing and open_clip's built-in text tokenizer."""
    path = tmp_path_factory.mktemp("clip")
    weights = {name: value.contiguous() for name, value in tiny().model.state_dict().items()}
    save_file(weights, path / "open_clip_model.safetensors")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_MODEL, "preprocess_cfg": PREPROCESS}))
    return path


def test_gradient_reaches_the_pictures_and_nothing_else():
    filter_ = tiny()
    pictures = random_pictures(3).requires_grad_(True)
    sources = random_pictures(3, seed=1).requires_grad_(True)
    similarity = filter_.similarity(pictures, sources)
    assert similarity.shape == (3,)
    similarity.sum().backward()
    assert pictures.grad is not None and (pictures.grad.flatten(1).norm(dim=1) > 0).all()
    assert sources.grad is None
    assert all(p.grad is None and not p.requires_grad and p.dtype == torch.float32 for p in filter_.model.parameters())
    assert not filter_.model.training


def test_ascent_along_the_gradient_raises_the_similarity():
    filter_ = tiny()
    sources, pictures = random_pictures(2), random_pictures(2, seed=1).requires_grad_(True)
    before = filter_.similarity(pictures, sources)
    (gradient,) = torch.autograd.grad(before.sum(), pictures)
    after = filter_.similarity((pictures + 0.05 * gradient.sign()).clamp(-1, 1), sources)
    assert (after > before).all()


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("height, width", [(32, 32), (20, 20), (96, 96), (50, 75), (81, 64)])
def test_preprocessing_equals_open_clips_own(folder, tmp_path, height, width, interpolation, mode):
    preprocess = PREPROCESS | {"interpolation": interpolation, "resize_mode": mode}
    clip = shutil.copytree(folder, tmp_path / "clip")
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_MODEL, "preprocess_cfg": preprocess}))
    filter_ = ClipFilter(ClipConfig(model=str(clip)), CPU)
    transform = image_transform_v2(PreprocessCfg(size=(32, 32), **preprocess), is_train=False)

    def error(pictures: Tensor) -> Tensor:
        """Difference of the two, in byte steps."""
        expected = torch.stack([transform(image) for image in as_files(pictures)])
        got = filter_.preprocess(pictures)
        assert got.shape == expected.shape == (2, 3, 32, 32)
        return (got - expected).abs() * torch.tensor(PREPROCESS["std"]).view(3, 1, 1) * 255

    # PIL rounds to bytes after the rows and again after the columns: half a step each, and a little for its integer weights.
    assert error(0.6 * random_pictures(2, height, width)).max() <= 1.6
    # At full contrast it also cuts off what the rows overshoot before it comes to the columns: rare, but not small in noise.
    assert error(random_pictures(2, height, width)).mean() <= 0.4


def as_files(pictures: Tensor) -> list[Image.Image]:
    return [Image.fromarray(p) for p in ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]


def test_similarity_is_the_cosine_of_open_clips_embeddings(folder):
    filter_ = ClipFilter(ClipConfig(model=str(folder), compare="text"), CPU)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pictures, texts = random_pictures(2, 32, 32), ["a red cube", "two blue spheres"]
    images = torch.stack([transform(image) for image in as_files(pictures)])
    with torch.no_grad():
        image, text = model.encode_image(images), model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts))
    expected = torch.cosine_similarity(image, text)
    assert torch.allclose(filter_.similarity(pictures, texts=texts), expected, atol=1e-5)


def test_the_same_picture_is_accepted_and_float32_survives_autocast():
    filter_ = tiny()
    pictures = random_pictures(4)
    with torch.autocast("cpu", torch.bfloat16):
        similarity = filter_.similarity(pictures.bfloat16().float(), pictures.bfloat16())
    assert similarity.dtype == torch.float32
    assert torch.allclose(similarity, torch.ones(4), atol=1e-6)
    assert filter_.accepts(similarity).tolist() == [True] * 4
    assert filter_.accepts(torch.tensor([0.6, 0.59, torch.nan, -1.0])).tolist() == [True, False, False, False]


def test_each_comparison_has_its_threshold():
    assert tiny().tau == 0.6
    assert tiny(compare="text").tau == 0.3
    assert tiny(tau=-1.0).tau == -1.0
    with pytest.raises(ValueError, match="sources"):
        tiny().similarity(random_pictures(1), texts=["a cube"])
    with pytest.raises(ValueError, match="texts"):
        tiny(compare="text").similarity(random_pictures(1), random_pictures(1))


def test_the_tiny_random_clip_is_always_the_same_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = tiny(compare="text").similarity(random_pictures(3), texts=["a", "b", "c"])
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(8)
    assert torch.equal(first, tiny(compare="text").similarity(random_pictures(3), texts=["a", "b", "c"]))


def test_weights_of_a_named_architecture_come_with_the_preprocessing_of_their_folder(folder, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-named", TINY_MODEL)
    expected = ClipFilter(ClipConfig(model=str(folder)), CPU).similarity(random_pictures(2), random_pictures(2, seed=1))
    for pretrained in (folder, folder / "open_clip_model.safetensors"):
        filter_ = ClipFilter(ClipConfig(model="tiny-named", pretrained=str(pretrained)), CPU)
        assert filter_.model.visual.preprocess_cfg["mean"] == PREPROCESS["mean"]
        assert torch.equal(filter_.similarity(random_pictures(2), random_pictures(2, seed=1)), expected)
    with pytest.raises(ConfigError, match="cannot be loaded.*open_clip_model.safetensors"):
        ClipFilter(ClipConfig(model="ViT-B-32", pretrained=str(folder)), CPU)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tau": 1.5}, r"objectives.unigame.clip.tau must lie in \[-1, 1\]; got 1.5"),
        ({"tau": float("nan")}, r"clip.tau must lie in \[-1, 1\]; got nan"),
        ({"compare": "picture"}, "objectives.unigame.clip.compare 'picture'. Legal: image, text"),
        ({"model": "ViT-B-23"}, "Did you mean 'ViT-B-32'"),
        ({"model": "tiny-randm"}, "Did you mean 'tiny-random'"),
        ({"model": "nowhere/clip"}, "no folder and no open_clip architecture 'nowhere/clip'"),
        ({"model": "tiny-random", "pretrained": "openai"}, "brings its own weights"),
        ({"model": "ViT-B-32"}, "pretrained: /path/to/open_clip_model.safetensors"),
        ({"model": "ViT-B-32", "pretrained": "openia"}, "Did you mean 'openai'.*pretrained: /path/to/"),
        ({"model": "ViT-B-32", "pretrained": "nowhere/clip.safetensors"}, "no file, no folder and no tag"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_built(changes, message, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", None)
    with pytest.raises(ConfigError, match=message):
        ClipFilter(fill(ClipConfig, changes, "objectives.unigame.clip"), CPU)


@pytest.mark.parametrize(
    "compare, broken, content, message",
    [
        ("image", "open_clip_config.json", None, "not a readable open_clip configuration"),
        ("image", "open_clip_model.safetensors", None, "has no weights"),
        ("text", "tokenizer_config.json", None, "no tokenizer_config.json"),
        *(("image", "open_clip_config.json", text, "open_clip_config.json") for text in ("{", "[]", '{"model_cfg": {}}')),
    ],
)
def test_what_a_folder_lacks_or_has_broken_is_named(folder, tmp_path, compare, broken, content, message):
    clip = shutil.copytree(folder, tmp_path / "clip")
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": HUB_TOKENIZER, "preprocess_cfg": PREPROCESS}))
    (clip / broken).unlink(missing_ok=True)
    if content is not None:
        (clip / broken).write_text(content)
    with pytest.raises(ConfigError, match=message):
        ClipFilter(ClipConfig(model=str(clip), compare=compare), CPU)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.bin", "broken.pt"])
def test_a_broken_weights_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-named", TINY_MODEL)
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(ConfigError, match="'tiny-named' cannot be loaded"):
        ClipFilter(ClipConfig(model="tiny-named", pretrained=str(tmp_path / name)), CPU)


@pytest.mark.parametrize("tag", ["openai", "laion2b_s34b_b79k"])
def test_offline_a_tag_is_refused_without_touching_the_network(tag, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    with pytest.raises(ConfigError, match="pretrained: /path/to/open_clip_model.safetensors"):
        ClipFilter(ClipConfig(model="ViT-B-32", pretrained=tag), CPU)
    assert asked == []


def test_offline_the_hub_is_not_asked_for_a_tokenizer(folder, monkeypatch):
    """An architecture whose tokenizer lives on the hub, with local weights."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hub-tokenizer", HUB_TOKENIZER)
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    config = ClipConfig(model="tiny-hub-tokenizer", pretrained=str(folder), compare="text")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ClipFilter(config, CPU)
    assert asked == []
    assert ClipFilter(ClipConfig(model="tiny-hub-tokenizer", pretrained=str(folder)), CPU).tokenizer is None
