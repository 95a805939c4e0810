"""The two passes of Emu3: losses, places of codes, dummy rows, gradients, attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from megaunigame.models.emu3 import Emu3
from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, left_padded, understand


def whole_sequence(model, inputs, codes, row):
    """(tokens, places of codes) of one generate row as a plain sequence without padding; its source codes are in place."""
    tokens = inputs.tokens.clone()
    if inputs.image_valid is not None and inputs.image_valid[row].any():
        seen = model.vision_tokenizer.encode(inputs.images[row]).flatten() + model.rows.first
        tokens[row, inputs.image_slots[row]] = seen
    prompt = tokens[row, inputs.attention[row]]
    places = len(prompt) + model.rows.places()
    return torch.cat([prompt, model.rows.tokens(codes)[row]]), places


def test_the_loss_falls_on_codes_over_the_whole_vocabulary(emu3, picture):
    inputs = generate(emu3, GenerateRow("a cube", picture(0)), GenerateRow("its depth", picture(1), picture(2)), None)
    with torch.no_grad():
        output = emu3(GENERATE, inputs, predict=True)
        assert output.hidden.shape == (3, 16, 64) and output.loss_sum[2] == 0
        for row in range(2):
            tokens, places = whole_sequence(emu3, inputs, output.target, row)
            states = emu3.language_model(input_ids=tokens[None]).last_hidden_state[0]
            logits = F.linear(states, emu3.lm_head.weight)[places - 1]
            expected = F.cross_entropy(logits, tokens[places], reduction="sum").item()
            assert output.loss_sum[row].item() == pytest.approx(expected, rel=1e-5)
            torch.testing.assert_close(output.hidden[row], states[places - 1], rtol=1e-4, atol=1e-4)
            assert torch.equal(output.predictions[row], logits[:, emu3.rows.ids].argmax(-1))
    assert torch.equal(output.target, emu3.encode_target(inputs.targets))


def test_an_understood_picture_is_read_as_its_codes(emu3, picture):
    inputs = understand(emu3, UnderstandRow([picture(0), picture(1)], TURNS))
    tokens = inputs.tokens.clone()
    tokens[inputs.image_slots] = emu3.vision_tokenizer.encode(inputs.images[0]).flatten() + emu3.rows.first
    with torch.no_grad():
        logits = emu3.lm_head(emu3.language_model(input_ids=tokens).last_hidden_state)
        expected = F.cross_entropy(logits[0, :-1], inputs.labels[0, 1:], reduction="sum")
        output = emu3(UNDERSTAND, inputs, predict=True)
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(output.predictions[:, 1:], logits[:, :-1].argmax(-1))


def test_padding_side_does_not_matter(emu3, picture):
    rows = (UnderstandRow([picture(0)], TURNS[:1]), UnderstandRow([picture(1)], TURNS))
    with torch.no_grad():
        right = emu3(UNDERSTAND, understand(emu3, *rows)).loss_sum
        left = emu3(UNDERSTAND, left_padded(understand(emu3, *rows), extra=5)).loss_sum
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-4)


def test_a_longer_neighbour_does_not_change_a_generate_row(emu3, picture):
    short, long = GenerateRow("a cube", picture(0)), GenerateRow("a small green cone behind", picture(1), picture(2))
    with torch.no_grad():
        alone = emu3(GENERATE, generate(emu3, short)).loss_sum
        beside = emu3(GENERATE, generate(emu3, short, long)).loss_sum
    torch.testing.assert_close(beside[:1], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_independent_turns_equal_turns_asked_alone(emu3_path, picture, attention):
    model = Emu3.load(emu3_path, max_length=160, attention=attention)
    with torch.no_grad():
        together = model(UNDERSTAND, understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None)).loss_sum
        alone = [model(UNDERSTAND, understand(model, UnderstandRow([picture(0)], [t]))).loss_sum for t in TURNS]
    assert together[0].item() == pytest.approx(torch.cat(alone).sum().item(), abs=1e-4, rel=1e-5)


def test_dummy_rows_have_no_loss_and_no_gradient(emu3, picture):
    def gradients(*rows):
        emu3.zero_grad()
        inputs_u = understand(emu3, *[UnderstandRow([picture(0)], TURNS[:1]) if r else None for r in rows])
        inputs_g = generate(emu3, *[GenerateRow("a cube", picture(1)) if r else None for r in rows])
        losses = torch.stack([emu3(UNDERSTAND, inputs_u).loss_sum, emu3(GENERATE, inputs_g).loss_sum])
        losses.sum().backward()
        return losses.detach(), {n: p.grad.clone() for n, p in emu3.named_parameters()}

    losses, with_dummy = gradients(True, False)
    assert (losses[:, 1] == 0).all() and (losses[:, 0] > 0).all()
    _, without = gradients(True)
    for name, grad in with_dummy.items():
        atol = 1e-5 + 1e-5 * without[name].abs().max().item()
        torch.testing.assert_close(grad, without[name], rtol=1e-4, atol=atol, msg=name)
    losses, nothing = gradients(False, False)
    assert (losses == 0).all()
    assert all((g == 0).all() for g in nothing.values())


def test_every_parameter_takes_part_in_either_pass(emu3, picture):
    text, drawn = understand(emu3, UnderstandRow([], TURNS[:1])), generate(emu3, GenerateRow("a cube", picture(0)))
    for pass_name, inputs in ((UNDERSTAND, text), (GENERATE, drawn)):
        emu3.zero_grad()
        emu3(pass_name, inputs).loss_sum.sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in emu3.parameters()), pass_name


def test_the_gradient_into_the_source_is_scaled_and_nothing_else(emu3, picture):
    """Only a code of the source that is no code of the target and no token of the text shows the factor alone."""

    def measured(factor):
        inputs = generate(emu3, GenerateRow("the same", picture(0), source=picture(9), source_gradient=factor))
        emu3.zero_grad()
        output = emu3(GENERATE, inputs)
        output.loss_sum.sum().backward()
        seen = set(emu3.vision_tokenizer.encode(inputs.images[0]).flatten().tolist()) - set(output.target[0].tolist())
        assert seen
        rows = [emu3.rows.first + code for code in seen]
        table, head = emu3.language_model.embed_tokens.weight.grad, emu3.lm_head.weight.grad
        return output.loss_sum.detach(), table[rows].clone(), head.clone()

    whole, tenth = measured(1.0), measured(0.1)
    assert torch.equal(tenth[0], whole[0]) and torch.equal(tenth[2], whole[2])
    torch.testing.assert_close(tenth[1], 0.1 * whole[1])


def test_dropped_conditions_are_all_the_same(emu3, picture):
    rows = [GenerateRow(text, picture(0), source=picture(seed), unconditional=True) for text, seed in (("X", 1), ("a ball", 2))]
    with torch.no_grad():
        losses = [emu3(GENERATE, generate(emu3, row)).loss_sum for row in rows]
    assert torch.equal(*losses)


def test_shares_of_attention_are_those_of_the_maps(emu3_path, picture):
    """Q: codes that are read; K: text before the picture, without codes and line ends of a source."""
    eager = Emu3.load(emu3_path, max_length=128, attention="eager")
    inputs = generate(eager, GenerateRow("its depth", picture(0), picture(1)), GenerateRow("a cube", picture(2)))
    codes = eager.encode_target(inputs.targets)
    model = Emu3.load(emu3_path, max_length=128)
    model.install_taps()
    with torch.no_grad():
        found = model(GENERATE, dataclasses.replace(inputs, taps=Taps(layers=(0, 1)))).attention.keys
        for row in range(2):
            tokens, places = whole_sequence(eager, inputs, codes, row)
            maps = eager.language_model(input_ids=tokens[None], output_attentions=True).attentions
            text = torch.ones(len(tokens), dtype=torch.bool)
            text[places[0] :] = False
            text &= (tokens < eager.rows.first) | (tokens >= eager.rows.ids.stop)
            text &= tokens != eager.rows.line_end
            assert text.sum() == inputs.attention[row].sum() - (12 if row == 0 else 0)
            for layer in range(2):
                expected = maps[layer][0][:, places[:-1]][:, :, text].sum(-1).mean()
                assert found[layer, row].item() == pytest.approx(expected.item(), abs=1e-6)
        asked = understand(eager, UnderstandRow([picture(0)], TURNS))
        share = model(UNDERSTAND, dataclasses.replace(asked, taps=Taps(layers=(1,)))).attention.keys
        embeds = eager.embed(asked)
        last = eager.language_model(inputs_embeds=embeds, output_attentions=True).attentions[1][0]
    mass = last[:, asked.labels[0] >= 0][:, :, asked.image_slots[0]].sum(-1).mean()
    assert share.item() == pytest.approx(mass.item(), abs=1e-6)


def test_bfloat16_is_finite_and_near_float32(emu3_path, picture):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = Emu3.load(emu3_path, max_length=128, dtype=dtype)
        model.load_frozen(str(emu3_path), torch.device("cpu"), torch.float32)  # as the engine does
        inputs = understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None)
        drawn = model(GENERATE, generate(model, GenerateRow("a cube", picture(0), picture(1)), None))
        inputs.images = model.as_source(model.decode(drawn.hidden).pixels).unsqueeze(1)
        asked = model(UNDERSTAND, inputs)
        (asked.loss_sum.sum() + drawn.loss_sum.sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        losses.append(drawn.loss_sum.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.0)


def test_checkpointing_changes_no_gradient(emu3_path, picture):
    grads = []
    for checkpointing in (False, True):
        model = Emu3.load(emu3_path, max_length=128, gradient_checkpointing=checkpointing).train()
        inputs = generate(model, GenerateRow("a cube", picture(0), picture(1)))
        model(GENERATE, inputs).loss_sum.sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
        assert all(layer.gradient_checkpointing == checkpointing for layer in model.language_model.layers)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6, msg=name)
