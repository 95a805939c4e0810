"""Rows to tensors: format, truncation, padding, pictures."""

from __future__ import annotations

import shutil

import pytest
import torch

from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.models.janus import JanusProcessor
from megaunigame.models.text.pictures import BACKGROUND, Normalize, crop, fit
from megaunigame.step.inputs import IGNORE
from megaunigame.step.requests import GENERATE, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand, with_replaced, words

TURNS = [("what is this ?", "a red ball"), ("how many ?", "two")]


@pytest.fixture
def processor(folder):
    return JanusProcessor.from_folder(folder, max_length=96)


def test_conversation_format(processor, picture):
    inputs = understand(processor, UnderstandRow([picture(0)], TURNS))
    image = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
    assert words(processor, inputs) == (
        f"<s><|User|>: {image}\nwhat is this ?\n\n<|Assistant|>: a red ball</s><|User|>: how many ?\n\n<|Assistant|>: two</s>"
    )
    labeled = inputs.labels[0] != IGNORE
    assert processor.tokenizer.decode(inputs.tokens[0][labeled].tolist()) == " a red ball</s> two</s>"
    assert torch.equal(inputs.labels[0][labeled], inputs.tokens[0][labeled])
    assert inputs.counts.tolist() == [labeled.sum()]
    slots = inputs.tokens[0][inputs.image_positions[0]]
    assert len(slots) == 16 and (slots == processor.format.image).all()
    assert inputs.tokens.shape[1] % 8 == 0 and inputs.segments is None


def test_generation_format(processor, picture):
    inputs = generate(
        processor, GenerateRow("a cube", picture(0)), GenerateRow("its depth", picture(0), source=picture(1)), None
    )
    image = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
    assert words(processor, inputs, 0) == "<s><|User|>: a cube\n\n<|Assistant|>:<begin_of_image>"
    assert words(processor, inputs, 1) == f"<s><|User|>: {image}\nits depth\n\n<|Assistant|>:<begin_of_image>"
    assert inputs.counts.tolist() == [16, 16, 0] and processor.after_prompt == 16
    assert inputs.attention[:, -1].all() and inputs.tokens.shape[1] % 8 == 0
    assert inputs.image_valid.tolist() == [[False], [True], [False]]
    assert (inputs.targets[2] == 0).all() and (inputs.images[2] == 0).all()


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


def test_turns_that_do_not_fit_are_dropped(folder, picture):
    row = UnderstandRow([picture(0)], TURNS)
    whole = understand(JanusProcessor.from_folder(folder, max_length=500), row)
    length = int(whole.attention.sum())
    processor = JanusProcessor.from_folder(folder, max_length=length - 1)
    inputs = understand(processor, row)
    assert words(processor, inputs).endswith("a red ball</s>")
    exact = understand(JanusProcessor.from_folder(folder, max_length=length), row)
    assert torch.equal(exact.tokens, whole.tokens)


@pytest.mark.parametrize("independent", [False, True])
def test_a_single_long_turn_is_cut_at_its_end(folder, picture, independent):
    processor = JanusProcessor.from_folder(folder, max_length=90)
    inputs = understand(processor, UnderstandRow([picture(0)], [("what ?", "ball " * 100)], independent=independent))
    assert inputs.attention.sum() == 90 and inputs.image_positions.sum() == 16
    assert inputs.counts[0] == (inputs.labels != IGNORE).sum() > 0


def test_a_long_prompt_loses_text_only(processor, picture):
    inputs = generate(processor, GenerateRow("cube " * 200, picture(0), source=picture(1)))
    assert inputs.attention.sum() + 16 == 96
    assert words(processor, inputs).endswith("\n\n<|Assistant|>:<begin_of_image>") and inputs.image_positions.sum() == 16


def test_rows_that_cannot_fit_are_refused(folder, picture):
    processor = JanusProcessor.from_folder(folder, max_length=60)
    with pytest.raises(DataError, match="Sample key: 3 image.*max_length is 60"):
        understand(processor, UnderstandRow([picture(0)] * 3, TURNS))
    with pytest.raises(ConfigError, match="max_length=30 .*Give max_length="):
        generate(JanusProcessor.from_folder(folder, max_length=30), GenerateRow("a", picture(0)))


def test_dummy_rows(processor, picture):
    inputs = understand(processor, UnderstandRow([picture(0), picture(1)], TURNS), None)
    assert inputs.counts[1] == 0 and (inputs.labels[1] == IGNORE).all() and (inputs.tokens[1] == processor.pad_id).all()
    assert inputs.images.shape == (2, 2, 3, 16, 16) and (inputs.images[1] == 0).all()
    assert inputs.image_valid.tolist() == [[True, True], [False, False]]
    empty = understand(processor, None)
    assert empty.images.shape[1] == 1


def test_the_generate_pass_takes_images_only_when_the_plan_says_so(processor, picture):
    plan = plan_from([RowRequest("g", GENERATE, "s", 1)])
    inputs = processor.collate(plan, GENERATE, [GenerateRow("a", picture(0))], [0], ["key"])
    assert inputs.images is None and inputs.image_valid is None


def test_unconditional_rows_are_pads_between_their_ends(processor, picture):
    inputs = generate(processor, GenerateRow("a cube", picture(0), source=picture(1), unconditional=True))
    real = inputs.tokens[0][inputs.attention[0]].tolist()
    assert real[0] == processor.format.bos and real[-1] == processor.format.begin
    assert set(real[1:-1]) == {processor.pad_id}
    assert not inputs.image_positions.any() and not inputs.image_valid.any()


def test_prompts_end_where_the_answer_begins(processor, picture):
    inputs = processor.prompt_inputs([[picture(0)], []], ["what ?", "how many ?"])
    assert words(processor, inputs, 1) == "<s><|User|>: how many ?\n\n<|Assistant|>:"
    row = understand(processor, UnderstandRow([], [("how many ?", "two")]))
    prompt = inputs.tokens[1][inputs.attention[1]]
    assert torch.equal(row.tokens[0, : len(prompt)], prompt)
    assert row.labels[0, len(prompt)] != IGNORE and inputs.attention[:, -1].all()


def test_a_system_prompt_comes_first(folder, tmp_path, picture):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "processor_config.json").write_text('{"system_prompt": "Be brief."}')
    processor = JanusProcessor.from_folder(tmp_path, max_length=96)
    inputs = understand(processor, UnderstandRow([], TURNS[:1]))
    assert words(processor, inputs).startswith("<s>Be brief.\n\n<|User|>: what is this ?")


def test_a_tokenizer_without_image_tokens_is_refused(folder, tmp_path, tokenizer):
    with pytest.raises(ModelError, match="no token <end_of_image>"):
        JanusProcessor.from_folder(with_replaced(folder, tmp_path, b"<end_of_image>", b"<end_of_picture>"), max_length=96)


def test_pictures_are_normalized_to_plus_minus_one(processor):
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    inputs = understand(processor, UnderstandRow([image], TURNS))
    assert inputs.images[0, 0, :, 3, 4].tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)
    inputs = generate(processor, GenerateRow("a", image))
    assert inputs.targets[0, :, 3, 4].tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)


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
