"""Rows of OpenUni as tokens."""

from __future__ import annotations

import shutil

import pytest

from megaunigame.errors import ConfigError, ModelError
from megaunigame.models.openuni import OpenUniProcessor
from megaunigame.step.inputs import IGNORE
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand, with_replaced, words

TURNS = [("what is this ?", "a red ball"), ("how many ?", "two")]
PICTURE = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"


@pytest.fixture
def processor(openuni_path):
    return OpenUniProcessor.from_folder(openuni_path, max_length=96)


def test_conversation_format(processor, picture):
    inputs = understand(processor, UnderstandRow([picture(0), picture(1)], TURNS))
    assert words(processor, inputs) == (
        f"<|im_start|>user\n{PICTURE}\n{PICTURE}\nwhat is this ?<|im_end|>\n<|im_start|>assistant\na red ball<|im_end|>"
        "\n<|im_start|>user\nhow many ?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>"
    )
    labeled = inputs.labels[0] != IGNORE
    assert processor.tokenizer.decode(inputs.tokens[0][labeled].tolist()) == "a red ball<|im_end|>two<|im_end|>"
    assert inputs.counts.tolist() == [labeled.sum()] and inputs.image_positions[0].sum() == 8
    assert inputs.images.shape == (1, 2, 3, 16, 16)


def test_generation_format(processor, picture):
    rows = GenerateRow(" a cube ", picture(0)), GenerateRow("its depth", picture(0), source=picture(1)), None
    inputs = generate(processor, *rows)
    asked = "<|im_end|>\n<|im_start|>assistant\n<img>"
    assert words(processor, inputs, 0) == f"<|im_start|>user\nGenerate an image: a cube{asked}"
    assert words(processor, inputs, 1) == f"<|im_start|>user\n{PICTURE}\nits depth{asked}"
    assert processor.after_prompt == 6
    assert inputs.counts.tolist() == [256, 256, 0] and inputs.targets.shape == (3, 3, 32, 32)
    assert inputs.image_valid.tolist() == [[False], [True], [False]] and inputs.attention[:, -1].all()


def test_rows_that_cannot_fit_are_refused(openuni_path, picture):
    with pytest.raises(ConfigError, match="max_length=20 .*6 positions"):
        generate(OpenUniProcessor.from_folder(openuni_path, max_length=20), GenerateRow("a", picture(0)))


def test_a_system_prompt_comes_first(openuni_path, tmp_path, picture):
    shutil.copytree(openuni_path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "processor_config.json").write_text('{"system_prompt": "Be brief."}')
    processor = OpenUniProcessor.from_folder(tmp_path, max_length=96)
    inputs = understand(processor, UnderstandRow([], TURNS[:1]))
    assert words(processor, inputs).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhat is this ?")


def test_a_tokenizer_without_image_tokens_is_refused(openuni_path, tmp_path):
    with pytest.raises(ModelError, match="no token <IMG_CONTEXT>, which OpenUni needs"):
        OpenUniProcessor.from_folder(with_replaced(openuni_path, tmp_path, b"<IMG_CONTEXT>", b"<IMG_CONTENTS>"), max_length=96)
