"""The passes of Emu3.5 and what they read: blanks before texts, line ends between rows, the source of a dropped condition."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.emu3_5.conversation import for_task
from megaunigame.step.rows import GenerateRow
from tests.models.shared import generate, greedy, words

FAMILY = "emu3_5"


def test_lines_end_between_rows_only():
    grid = CodeGrid(2, 3, 151854, 131072, 151846, last_line_ends=False)
    tokens = grid.tokens(torch.tensor([[7, 8, 9, 10, 11, 131071]]))
    assert tokens[0].tolist() == [151861, 151862, 151863, 151846, 151864, 151865, 282925]
    assert (grid.size, grid.length, grid.read, grid.ids) == ("2*3", 7, 6, slice(151854, 282926))


def test_the_picture_of_the_format_has_the_official_length(model):
    form = model.processor.format
    assert len(form._opening(1)) - len(form._opening(0)) - 1 == 3 * 3 + 2 + 3 + len(form.encode("3*3"))
    assert form.grid.length == 4 * 4 + 3 and model.calls_per_sample == model.processor.after_prompt == 19


@pytest.mark.parametrize("text", ["A red cat.", " A red cat. ", '"quoted"', "7 cats", "猫", ""])
def test_pieces_are_the_tokens_of_the_whole_line(model, text):
    """The blank before a text belongs to its first word; before a picture it is a token."""
    processor = model.processor
    whole = processor.tokenizer.encode(
        f"<|extra_203|>You are a helpful assistant for t2i task. USER: {text.strip()} ASSISTANT: <|extra_100|>",
        add_special_tokens=False,
    )
    inputs = processor.generate_prompts([text])
    assert inputs.tokens[0][inputs.attention[0]].tolist()[: len(whole)] == whole
    asked = processor.prompt_inputs([[]], [text])
    expected = f"<|extra_203|>You are a helpful assistant. USER: {text.strip()} ASSISTANT: <|extra_100|>"
    assert words(processor, asked) == expected


def test_the_task_ends_the_system_prompt():
    assert for_task("You are a helpful assistant.", "t2i") == "You are a helpful assistant for t2i task."
    assert for_task("", "x2i") == ""


def test_guidance_reads_what_a_dropped_condition_trains(model, picture):
    """Row by row: with its source, or without one; also where another row is far longer."""
    inputs = model.processor.generate_prompts(["a cube", "x " * 30, "its depth"], [None, None, picture(3)])
    embeds, attention = model.unconditional(inputs)
    assert embeds.shape[:2] == inputs.tokens.shape
    for row, source in enumerate((None, None, picture(3))):
        dropped = generate(model, GenerateRow("any text", picture(0), source=source, unconditional=True))
        trained = model.embed(dropped)[0, dropped.attention[0]]
        torch.testing.assert_close(embeds[row, attention[row]], trained, rtol=0, atol=0)
    text_only = model.processor.generate_prompts(["a cube"])
    embeds, attention = model.unconditional(text_only)
    row = model.processor.without_condition(text_only).tokens[0, attention[0]].tolist()
    assert row == model.processor.unconditional_tokens()
    assert model.processor.tokenizer.decode(row) == (
        "<|extra_203|>You are a helpful assistant. USER:  ASSISTANT: <|extra_100|><|image start|>4*4<|image token|>"
    )


def test_what_guidance_subtracts_depends_on_the_source_and_on_no_text(model, picture):
    """With guidance 0 the unconditional rows alone are scored."""

    def scores(text, seed):
        drawn = []
        inputs = model.processor.generate_prompts([text], [picture(seed)])
        model.sample_codes(inputs, guidance=0.0, pick=lambda logits: drawn.append(logits) or greedy(logits))
        return torch.stack(drawn)

    torch.testing.assert_close(scores("a", 1), scores("two cubes", 1), rtol=1e-4, atol=1e-4)
    assert (scores("a", 1)[0] - scores("a", 2)[0]).abs().max() > 1e-3
