"""The passes of Emu3.5 and what they read: blanks before texts, line ends between rows, the source of a dropped condition."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.emu3_5.conversation import for_task
from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, greedy, losses_of_training, understand, words

FAMILY = "emu3_5"


def whole_sequence(model, inputs, codes, row):
    """(tokens, places of codes) of one generate row as a plain sequence without padding; its source codes are in place."""
    tokens = inputs.tokens.clone()
    if inputs.image_valid is not None and inputs.image_valid[row].any():
        seen = model.vision_tokenizer.encode(inputs.images[row]).flatten() + model.grid.first
        tokens[row, inputs.image_positions[row]] = seen
    prompt = tokens[row, inputs.attention[row]]
    return torch.cat([prompt, model.grid.tokens(codes)[row]]), len(prompt) + model.grid.places()


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


def test_the_loss_falls_on_codes_over_the_whole_vocabulary(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("its depth", picture(1), picture(2)), None)
    with torch.no_grad():
        output = model(inputs, predict=True)
        assert output.hidden.shape == (3, 16, 64) and output.loss_sum[2] == 0
        for row in range(2):
            tokens, places = whole_sequence(model, inputs, output.target, row)
            states = model.language_model(input_ids=tokens[None]).last_hidden_state[0]
            logits = F.linear(states, model.lm_head.weight)[places - 1]
            expected = F.cross_entropy(logits, tokens[places], reduction="sum").item()
            assert output.loss_sum[row].item() == pytest.approx(expected, rel=1e-5)
            torch.testing.assert_close(output.hidden[row], states[places - 1], rtol=1e-4, atol=1e-4)
            assert torch.equal(output.predictions[row], logits[:, model.grid.ids].argmax(-1))


def test_an_understood_picture_is_read_as_its_codes(model, picture):
    inputs = understand(model, UnderstandRow([picture(0), picture(1)], TURNS))
    tokens = inputs.tokens.clone()
    tokens[inputs.image_positions] = model.vision_tokenizer.encode(inputs.images[0]).flatten() + model.grid.first
    with torch.no_grad():
        logits = model.lm_head(model.language_model(input_ids=tokens).last_hidden_state)
        expected = F.cross_entropy(logits[0, :-1], inputs.labels[0, 1:], reduction="sum")
        output = model(inputs)
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_parameter_takes_part_in_either_pass(model, picture):
    text, drawn = understand(model, UnderstandRow([], TURNS[:1])), generate(model, GenerateRow("a cube", picture(0)))
    for pass_name, inputs in ((UNDERSTAND, text), (GENERATE, drawn)):
        model.zero_grad()
        model(inputs).loss_sum.sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters()), pass_name


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


def test_shares_of_attention_are_those_of_the_maps(tiny, model, picture):
    """Q: codes that are read; K: text before the picture, without codes and line ends of a source."""
    eager = tiny.load(attention="eager")
    inputs = generate(eager, GenerateRow("its depth", picture(0), picture(1)), GenerateRow("a cube", picture(2)))
    codes = eager.encode_target(inputs.targets)
    model.install_taps()
    with torch.no_grad():
        found = model(dataclasses.replace(inputs, taps=Taps(layers=(0, 1)))).attention.keys
        for row in range(2):
            tokens, places = whole_sequence(eager, inputs, codes, row)
            maps = eager.language_model(input_ids=tokens[None], output_attentions=True).attentions
            text = torch.ones(len(tokens), dtype=torch.bool)
            text[places[0] :] = False
            text &= (tokens < eager.grid.first) | (tokens >= eager.grid.ids.stop)
            text &= tokens != eager.grid.line_end
            assert text.sum() == inputs.attention[row].sum() - (11 if row == 0 else 0)
            for layer in range(2):
                expected = maps[layer][0][:, places[:-1]][:, :, text].sum(-1).mean()
                assert found[layer, row].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_frozen_tokenizer_is_exact_in_a_bfloat16_model(tiny, picture):
    pixels = picture(0)[None].float() / 127.5 - 1
    rounded, exact = tiny.load(dtype=torch.bfloat16), tiny.load()
    assert rounded.vision_tokenizer.dtype == torch.float32
    assert torch.equal(rounded.encode_target(pixels), exact.encode_target(pixels))


def test_a_few_steps_learn_a_picture_and_an_answer(model, picture):
    model.train()
    asked = understand(model, UnderstandRow([picture(0)], [("what ?", "a red ball")]))
    drawn = generate(model, GenerateRow("a cube", picture(0)))

    def loss():
        return model(asked).loss_sum.sum() + model(drawn).loss_sum.sum()

    losses = losses_of_training(model, loss, steps=8, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]
