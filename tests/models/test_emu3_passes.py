"""The two passes of Emu3: losses, places of codes, dummy rows, gradients, attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, losses_of_training, understand

FAMILY = "emu3"


def whole_sequence(model, inputs, codes, row):
    """(tokens, places of codes) of one generate row as a plain sequence without padding; its source codes are in place."""
    tokens = inputs.tokens.clone()
    if inputs.image_valid is not None and inputs.image_valid[row].any():
        seen = model.vision_tokenizer.encode(inputs.images[row]).flatten() + model.grid.first
        tokens[row, inputs.image_positions[row]] = seen
    prompt = tokens[row, inputs.attention[row]]
    places = len(prompt) + model.grid.places()
    return torch.cat([prompt, model.grid.tokens(codes)[row]]), places


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
    assert torch.equal(output.target, model.encode_target(inputs.targets))


def test_an_understood_picture_is_read_as_its_codes(model, picture):
    inputs = understand(model, UnderstandRow([picture(0), picture(1)], TURNS))
    tokens = inputs.tokens.clone()
    tokens[inputs.image_positions] = model.vision_tokenizer.encode(inputs.images[0]).flatten() + model.grid.first
    with torch.no_grad():
        logits = model.lm_head(model.language_model(input_ids=tokens).last_hidden_state)
        expected = F.cross_entropy(logits[0, :-1], inputs.labels[0, 1:], reduction="sum")
        output = model(inputs, predict=True)
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(output.predictions[:, 1:], logits[:, :-1].argmax(-1))


def test_every_parameter_takes_part_in_either_pass(model, picture):
    text, drawn = understand(model, UnderstandRow([], TURNS[:1])), generate(model, GenerateRow("a cube", picture(0)))
    for pass_name, inputs in ((UNDERSTAND, text), (GENERATE, drawn)):
        model.zero_grad()
        model(inputs).loss_sum.sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters()), pass_name


def test_the_gradient_into_the_source_is_scaled_and_nothing_else(model, picture):
    """Only a code of the source that is neither a code of the target nor a token of the text shows the factor alone."""

    def measured(factor):
        inputs = generate(model, GenerateRow("the same", picture(0), source=picture(9), source_gradient=factor))
        model.zero_grad()
        output = model(inputs)
        output.loss_sum.sum().backward()
        seen = set(model.vision_tokenizer.encode(inputs.images[0]).flatten().tolist()) - set(output.target[0].tolist())
        assert seen
        rows = [model.grid.first + code for code in seen]
        table, head = model.language_model.embed_tokens.weight.grad, model.lm_head.weight.grad
        return output.loss_sum.detach(), table[rows].clone(), head.clone()

    whole, tenth = measured(1.0), measured(0.1)
    assert torch.equal(tenth[0], whole[0]) and torch.equal(tenth[2], whole[2])
    torch.testing.assert_close(tenth[1], 0.1 * whole[1])


def test_dropped_conditions_of_another_length_are_the_same_too(model, picture):
    rows = [GenerateRow(text, picture(0), source=picture(seed), unconditional=True) for text, seed in (("X", 1), ("a ball", 2))]
    inputs = [generate(model, row) for row in rows]
    with torch.no_grad():
        assert torch.equal(*(model(each).loss_sum for each in inputs))
    tokens = inputs[0].tokens[0][inputs[0].attention[0]]
    assert tokens.tolist() == model.processor.unconditional_tokens()
    embeds, attention = model.unconditional(inputs[1])
    assert torch.equal(embeds[attention], model.language_model.embed_tokens(tokens))


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
            assert text.sum() == inputs.attention[row].sum() - (12 if row == 0 else 0)
            for layer in range(2):
                expected = maps[layer][0][:, places[:-1]][:, :, text].sum(-1).mean()
                assert found[layer, row].item() == pytest.approx(expected.item(), abs=1e-6)
        asked = understand(eager, UnderstandRow([picture(0)], TURNS))
        share = model(dataclasses.replace(asked, taps=Taps(layers=(1,)))).attention.keys
        embeds = eager.embed(asked)
        last = eager.language_model(inputs_embeds=embeds, output_attentions=True).attentions[1][0]
    mass = last[:, asked.labels[0] >= 0][:, :, asked.image_positions[0]].sum(-1).mean()
    assert share.item() == pytest.approx(mass.item(), abs=1e-6)


def test_a_few_steps_learn_a_picture_and_an_answer(model, picture):
    model.train()
    asked = understand(model, UnderstandRow([picture(0)], [("what ?", "a red ball")]))
    drawn = generate(model, GenerateRow("a cube", picture(0)))

    def loss():
        return model(asked).loss_sum.sum() + model(drawn).loss_sum.sum()

    losses = losses_of_training(model, loss, steps=8, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]
