"""Rows of Emu3 as tokens."""

from __future__ import annotations

import json

import pytest
import torch

from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.models.emu3 import Emu3Processor
from megaunigame.step.inputs import IGNORE
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, understand, with_replaced, words

CODE = "<|visual token 000000|>"
PICTURE = f"<|image start|>3*3<|image token|>{(CODE * 3 + '<|extra_200|>') * 3}<|extra_201|><|image end|>"
REQUEST = "<|image start|>4*4<|image token|>"


@pytest.fixture
def processor(emu3_path):
    return Emu3Processor.from_folder(emu3_path, max_length=128)


def test_conversation_format(processor, picture):
    inputs = understand(processor, UnderstandRow([picture(0), picture(1)], TURNS[:2]))
    assert words(processor, inputs) == (
        f"<|extra_203|>You are a helpful assistant. USER: {PICTURE}{PICTURE}what is this ?. ASSISTANT: a red ball<|extra_204|>"
        "USER: how many ?. ASSISTANT: two<|extra_204|>"
    )
    labeled = inputs.labels[0] != IGNORE
    assert processor.tokenizer.decode(inputs.tokens[0][labeled].tolist()) == " a red ball<|extra_204|> two<|extra_204|>"
    assert inputs.counts.tolist() == [labeled.sum()] and inputs.images.shape == (1, 2, 3, 12, 12)
    slots = inputs.tokens[0][inputs.image_positions[0]]
    assert len(slots) == 18 and (slots == processor.format.image).all()


def test_generation_format(processor, picture):
    rows = GenerateRow("a cube", picture(0)), GenerateRow("its depth", picture(0), source=picture(1)), None
    inputs = generate(processor, *rows)
    assert words(processor, inputs, 0) == f"<|extra_203|>a cube{REQUEST}"
    assert words(processor, inputs, 1) == f"<|extra_203|>{PICTURE}its depth{REQUEST}"
    assert inputs.counts.tolist() == [16, 16, 0] and inputs.targets.shape == (3, 3, 16, 16)
    assert inputs.image_valid.tolist() == [[False], [True], [False]] and inputs.attention[:, -1].all()
    assert inputs.intact.tolist() == [True, True, True] and processor.after_prompt == 19


def test_a_dropped_condition_is_an_empty_prompt(processor, picture):
    inputs = generate(processor, GenerateRow("a cube", picture(0), source=picture(1), unconditional=True))
    assert words(processor, inputs) == f"<|extra_203|>{REQUEST}" and inputs.intact.tolist() == [False]
    assert not inputs.image_positions.any() and not inputs.image_valid.any()
    assert processor.unconditional_tokens() == inputs.tokens[0][inputs.attention[0]].tolist()


def test_rows_of_codes(processor):
    grid = processor.format.grid
    codes = torch.arange(16).view(1, 16)
    tokens = grid.tokens(codes)
    names = processor.tokenizer.convert_ids_to_tokens(tokens[0].tolist())
    assert names[:6] == [*(f"<|visual token 00000{i}|>" for i in range(4)), "<|extra_200|>", "<|visual token 000004|>"]
    assert names[-1] == "<|extra_200|>" and len(names) == grid.length == 20
    assert torch.equal(tokens[0][grid.places()] - grid.first, codes[0])
    assert grid.arranged(codes)[0, 1].tolist() == [4, 5, 6, 7] and grid.size == "4*4"


def test_a_long_prompt_loses_text_only(processor, picture):
    inputs = generate(processor, GenerateRow("cube " * 200, picture(0), source=picture(1)))
    assert inputs.attention.sum() + 19 == 128 and inputs.intact.tolist() == [False]
    assert words(processor, inputs).endswith(f"cube{REQUEST}") and inputs.image_positions.sum() == 9


def test_rows_that_cannot_fit_are_refused(emu3_path, picture):
    narrow = Emu3Processor.from_folder(emu3_path, max_length=40)
    with pytest.raises(ConfigError, match=r"max_length=40 .*19 positions .*with a source image it needs"):
        generate(narrow, GenerateRow("a", picture(0), source=picture(0)))
    with pytest.raises(DataError, match="Sample key: 2 image.*take 38 tokens"):
        understand(narrow, UnderstandRow([picture(0)] * 2, TURNS))


def test_another_system_prompt_or_none(emu3_path, tmp_path):
    for prompt, start in (("Be brief.", "Be brief. USER: "), ("", "USER: ")):
        with_replaced(emu3_path, tmp_path, b"", b"")
        settings = json.loads((tmp_path / "processor_config.json").read_text())
        (tmp_path / "processor_config.json").write_text(json.dumps(settings | {"system_prompt": prompt}))
        processor = Emu3Processor.from_folder(tmp_path, max_length=128)
        assert words(processor, understand(processor, UnderstandRow([], TURNS[:1]))).startswith(f"<|extra_203|>{start}what")


def test_a_tokenizer_of_another_model_is_refused(emu3_path, tmp_path):
    with pytest.raises(ModelError, match=r"no token <\|image token\|>, which Emu3 needs"):
        Emu3Processor.from_folder(with_replaced(emu3_path, tmp_path, b"<|image token|>", b"<|image tokens|>"), max_length=128)
    swapped = with_replaced(emu3_path, tmp_path, b"visual token 000047", b"visual token 00004x")
    for file in swapped.iterdir():
        file.write_bytes(file.read_bytes().replace(b"visual token 000012", b"visual token 000047"))
    with pytest.raises(ModelError, match="must be consecutive"):
        Emu3Processor.from_folder(swapped, max_length=128)


def test_pictures_are_normalized_as_the_vision_tokenizer_reads_them(processor):
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    asked = understand(processor, UnderstandRow([image], TURNS)).images[0, 0, :, 3, 4]
    drawn = generate(processor, GenerateRow("a", image)).targets[0, :, 3, 4]
    for values in (asked, drawn):
        assert values.tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)
