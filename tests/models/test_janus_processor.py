"""Rows to tensors: turns, truncation, padding, pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from megaunigame.models.text import pictures
from megaunigame.models.text.pictures import BACKGROUND, Normalize, crop, fit, squash
from megaunigame.step.inputs import IGNORE
from megaunigame.step.requests import GENERATE, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, understand, words

FAMILY = "janus"
TWO_TURNS = TURNS[:2]


@pytest.fixture
def processor(tiny):
    return tiny.processor(max_length=96)


@pytest.mark.parametrize("images", [0, 1])
def test_a_single_turn_reads_the_same_either_way(processor, picture, images):
    rows = [UnderstandRow([picture(0)] * images, TURNS[:1], independent=flag) for flag in (False, True)]
    inputs = understand(processor, *rows)
    assert torch.equal(inputs.tokens[0], inputs.tokens[1])
    assert torch.equal(inputs.labels[0], inputs.labels[1])


def test_independent_turns_are_numbered(processor, picture):
    inputs = understand(processor, UnderstandRow([picture(0)], TURNS, independent=True))
    segments = inputs.segments[0][inputs.attention[0]].tolist()
    assert segments == sorted(segments) and set(segments) == {0, 1, 2}
    second = inputs.tokens[0][inputs.segments[0] == 2].tolist()
    assert processor.tokenizer.decode(second) == "\nhow many ?\n\n<|Assistant|>: two</s>"


def test_turns_that_do_not_fit_are_dropped(tiny, picture):
    row = UnderstandRow([picture(0)], TWO_TURNS)
    whole = understand(tiny.processor(max_length=500), row)
    length = int(whole.attention.sum())
    narrow = tiny.processor(max_length=length - 1)
    assert words(narrow, understand(narrow, row)).endswith("a red ball</s>")
    assert torch.equal(understand(tiny.processor(max_length=length), row).tokens, whole.tokens)


def test_dummy_rows(processor, picture):
    inputs = understand(processor, UnderstandRow([picture(0), picture(1)], TWO_TURNS), None)
    assert inputs.counts[1] == 0 and (inputs.labels[1] == IGNORE).all() and (inputs.tokens[1] == processor.pad_id).all()
    assert inputs.images.shape == (2, 2, 3, 16, 16) and (inputs.images[1] == 0).all()
    assert inputs.image_valid.tolist() == [[True, True], [False, False]]
    empty = understand(processor, None)
    assert empty.images.shape[1] == 1


def test_the_generate_pass_takes_images_only_when_the_plan_says_so(processor, picture):
    plan = plan_from([RowRequest("g", GENERATE, "s", 1)])
    inputs = processor.collate(plan, GENERATE, [GenerateRow("a", picture(0))], [0], ["key"])
    assert inputs.images is None and inputs.image_valid is None


def test_prompts_end_where_the_answer_begins(processor, picture):
    inputs = processor.prompt_inputs([[picture(0)], []], ["what ?", "how many ?"])
    assert words(processor, inputs, 1) == "<s><|User|>: how many ?\n\n<|Assistant|>:"
    row = understand(processor, UnderstandRow([], [("how many ?", "two")]))
    prompt = inputs.tokens[1][inputs.attention[1]]
    assert torch.equal(row.tokens[0, : len(prompt)], prompt)
    assert row.labels[0, len(prompt)] != IGNORE and inputs.attention[:, -1].all()


def test_other_statistics():
    normalize = Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    image = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    assert normalize(image)[:, 0, 0].tolist() == pytest.approx([5, 3, 7 / 3], rel=1e-5)


def test_a_view_of_interleaved_channels_comes_out_in_order():
    image = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).permute(2, 0, 1)
    assert Normalize((0.5,) * 3, (0.5,) * 3)(image).is_contiguous()


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20), (7, 5), (16, 16), (1, 300)])
def test_fit_and_crop_give_squares(height, width):
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    fitted, cropped = fit(image, 16), crop(image, 16)
    assert fitted.shape == cropped.shape == (3, 16, 16) and fitted.dtype == cropped.dtype == torch.uint8
    assert (cropped == 200).all()
    bars = (fitted[0] == BACKGROUND).sum().item()
    kept = max(1, 16 * min(height, width) // max(height, width))
    assert bars == 16 * (16 - kept)
    assert (fitted[0] == 200).sum().item() == 16 * kept


def test_crop_keeps_the_middle():
    image = torch.zeros(3, 16, 48, dtype=torch.uint8)
    image[:, :, 16:32] = 255
    assert (crop(image, 16) == 255).all()


@pytest.mark.parametrize(("height", "width", "side"), [(480, 640, 384), (30, 41, 96), (700, 700, 64), (65, 65, 64)])
def test_pictures_are_resized_as_pillow_resizes_them(height, width, side):
    """The released processors do so. Computed in float32, 6 to 26 % of the values would differ."""
    blurred = torch.rand(1, 3, height // 5, width // 5, generator=torch.Generator().manual_seed(0))
    image = (F.interpolate(blurred, (height, width), mode="bilinear")[0] * 255).to(torch.uint8)
    decoded = image.permute(1, 2, 0).contiguous()
    cases = {"view of a decoder": decoded.permute(2, 0, 1), "planes": image}
    expected = np.array(Image.fromarray(decoded.numpy()).resize((side, side), Image.Resampling.BICUBIC))
    in_float = F.interpolate(image[None].float(), (side, side), mode="bicubic", antialias=True)[0].round().permute(1, 2, 0)
    for name, given in cases.items():
        apart = (squash(given, side).permute(1, 2, 0).int() - torch.from_numpy(expected).int()).abs()
        assert apart.max() <= 2, (name, apart.max())
        assert apart.float().mean() < 0.5 * (in_float - torch.from_numpy(expected)).abs().mean(), name


@pytest.mark.parametrize(("height", "width"), [(2, 1600), (1, 4000), (1093, 5)])
def test_a_strip_is_cut_before_it_is_scaled(height, width, monkeypatch):
    """Scaled whole, 2 x 1,600 pixels would become 384 x 307,200."""
    largest, resize = [], pictures._resize

    def noted(image, *size):
        largest.append(max(image[0].numel(), math.prod(size)))
        return resize(image, *size)

    monkeypatch.setattr(pictures, "_resize", noted)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    middle = slice(width // 2 - 1, width // 2 + 1) if width > height else slice(None)
    image[:, :, middle] = 255
    assert crop(image, 384).shape == (3, 384, 384) and max(largest) == 384**2
    assert width < height or (crop(image, 384)[:, :, 192] == 255).all()
