"""Families whose codes are tokens of the vocabulary: plain sequences, gradients through codes, heads without all logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from megaunigame.errors import ModelError
from megaunigame.models.causal import head as token_head
from megaunigame.models.causal.code_pictures import CodePictures
from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import (
    ONE_BY_ONE,
    TOKEN_FAMILIES,
    TURNS,
    copied,
    generate,
    generated,
    losses_of_training,
    understand,
)

EVERY = pytest.mark.parametrize("tiny", TOKEN_FAMILIES, indirect=True)
IN_ORDER = pytest.mark.parametrize("tiny", [name for name in TOKEN_FAMILIES if name in ONE_BY_ONE], indirect=True)


def with_source_codes(model, inputs, row):
    """Tokens (S,) of a row without padding; the codes of its source pictures are in place."""
    tokens = inputs.tokens[row].clone()
    if inputs.image_positions[row].any():
        seen = model.vision_tokenizer.encode(inputs.images[row][inputs.image_valid[row]]).flatten()
        tokens[inputs.image_positions[row]] = seen + model.grid.first
    return tokens[inputs.attention[row]]


def whole_sequence(model, inputs, codes, row):
    """(tokens, places of codes) of one generate row as a plain sequence without padding."""
    prompt = with_source_codes(model, inputs, row)
    return torch.cat([prompt, model.grid.tokens(codes)[row]]), len(prompt) + model.grid.places()


@IN_ORDER
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


@IN_ORDER
def test_an_understood_picture_is_read_as_its_codes(model, picture):
    inputs = understand(model, UnderstandRow([picture(0), picture(1)], TURNS))
    real = inputs.attention[0]
    with torch.no_grad():
        states = model.language_model(input_ids=with_source_codes(model, inputs, 0)[None]).last_hidden_state[0]
        logits = F.linear(states, model.lm_head.weight)
        expected = F.cross_entropy(logits[:-1], inputs.labels[0][real][1:], reduction="sum")
        output = model(inputs, predict=True)
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(output.predictions[0][real][1:], logits[:-1].argmax(-1))


@EVERY
def test_every_parameter_takes_part_in_either_pass(model, picture):
    text, drawn = understand(model, UnderstandRow([], TURNS[:1])), generate(model, GenerateRow("a cube", picture(0)))
    for pass_name, inputs in ((UNDERSTAND, text), (GENERATE, drawn)):
        model.zero_grad()
        model(inputs).loss_sum.sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters()), pass_name


@EVERY
def test_the_gradient_into_the_source_is_scaled_and_nothing_else(model, picture):
    """Only a code of the source that is neither a code of the target nor a token of the text shows the factor alone."""

    def measured(factor):
        inputs = generate(model, GenerateRow("the same", picture(0), source=picture(28), source_gradient=factor))
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


@EVERY
def test_dropped_conditions_of_another_length_are_the_same_too(model, picture):
    """Without a source where the format keeps it."""
    seen = [None] * 2 if model.processor.format.keeps_source else [picture(1), picture(2)]
    rows = [
        GenerateRow(text, picture(0), source, unconditional=True) for text, source in zip(("X", "a ball"), seen, strict=True)
    ]
    inputs = [generate(model, row) for row in rows]
    with torch.no_grad():
        assert torch.equal(*(model(each).loss_sum for each in inputs))
    tokens = inputs[0].tokens[0][inputs[0].attention[0]]
    assert tokens.tolist() == model.processor.unconditional_tokens()
    embeds, attention = model.unconditional(inputs[1])
    assert torch.equal(embeds[attention], model.language_model.embed_tokens(tokens))


@IN_ORDER
def test_shares_of_attention_are_those_of_the_maps(tiny, model, picture):
    """Q: codes that are read; K: text before the picture, without codes and line ends of a source."""
    eager = tiny.load(attention="eager")
    inputs = generate(eager, GenerateRow("its depth", picture(0), picture(1)), GenerateRow("a cube", picture(2)))
    codes = eager.encode_target(inputs.targets)
    side = eager.processor.format.squares.source_side
    of_a_source = dataclasses.replace(eager.grid, height=side, width=side).length
    model.install_taps()
    with torch.no_grad():
        found = model(dataclasses.replace(inputs, taps=Taps(layers=(0, 1)))).attention.keys
        for row in range(2):
            tokens, places = whole_sequence(eager, inputs, codes, row)
            maps = eager.language_model(input_ids=tokens[None], output_attentions=True).attentions
            text = torch.arange(len(tokens)) < places[0]
            text &= (tokens < eager.grid.first) | (tokens >= eager.grid.ids.stop)
            text &= tokens != (-1 if eager.grid.line_end is None else eager.grid.line_end)
            assert text.sum() == places[0] - (of_a_source if row == 0 else 0)
            for layer in range(2):
                expected = maps[layer][0][:, places[:-1]][:, :, text].sum(-1).mean()
                assert found[layer, row].item() == pytest.approx(expected.item(), abs=1e-6)


@EVERY
def test_the_frozen_tokenizer_is_exact_in_a_bfloat16_model(tiny, picture):
    pixels = picture(0)[None].float() / 127.5 - 1
    rounded, exact = tiny.load(dtype=torch.bfloat16), tiny.load()
    assert rounded.vision_tokenizer.dtype == torch.float32
    assert torch.equal(rounded.encode_target(pixels), exact.encode_target(pixels))


@EVERY
def test_a_few_steps_learn_a_picture_and_an_answer(model, picture):
    model.train()
    asked = understand(model, UnderstandRow([picture(0)], [("what ?", "a red ball")]))
    drawn = generate(model, GenerateRow("a cube", picture(0)))

    def loss():
        return model(asked).loss_sum.sum() + model(drawn).loss_sum.sum()

    losses = losses_of_training(model, loss, steps=8 if model.predicts_whole else 12, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]


@EVERY
@pytest.mark.parametrize("count", [1, 2])
def test_a_gradient_into_pictures_changes_no_value(model, picture, count):
    images = understand(model, UnderstandRow([picture(n) for n in range(count)], [("what ?", "a ball")])).images
    plain, wanted = model.visual_tokens(images), images.clone().requires_grad_()
    shown = model.visual_tokens(wanted)
    assert torch.equal(shown, plain) and plain.shape == (1, count, 9, 64)
    codes = model.vision_tokenizer.encode(images[0]).flatten(1)
    torch.testing.assert_close(plain[0], F.embedding(codes + model.grid.first, model.language_model.embed_tokens.weight))
    with torch.no_grad():
        assert torch.equal(model.visual_tokens(wanted), plain)
    (gradient,) = torch.autograd.grad((shown * torch.linspace(-1, 1, shown.numel()).view_as(shown)).sum(), [wanted])
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 1e-7


@EVERY
def test_codes_are_expected_without_all_logits(model, picture, monkeypatch):
    """As from all logits at once, with the bias of a head that has one; of the logits none is made."""
    if model.lm_head.bias is not None:
        model.lm_head.bias.data = torch.randn(model.lm_head.bias.shape, generator=torch.Generator().manual_seed(0))
    hidden = generated(model, picture).hidden.clone().requires_grad_()
    plain_codes, plain = CodePictures.expected_codes(model, hidden)
    monkeypatch.setattr(type(model), "code_logits", None)
    monkeypatch.setattr(token_head, "SLICE_ELEMENTS", 32 * 10)
    codes, mean = model.expected_codes(hidden)
    assert torch.equal(codes, plain_codes) and mean.shape == (2, 16, model.codebook().shape[1])
    assert (mean >= model.codebook().amin(0) - 1e-5).all() and (mean <= model.codebook().amax(0) + 1e-5).all()
    torch.testing.assert_close(mean, plain, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(mean)
    (expected,) = torch.autograd.grad((plain * weights).sum(), [hidden])
    (found,) = torch.autograd.grad((mean * weights).sum(), [hidden])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@EVERY
def test_a_source_size_that_codes_cannot_fill_is_refused(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    (tmp_path / "processor_config.json").write_text('{"source_size": 10}')
    with pytest.raises(ModelError, match=r"source_size=10 .*multiple of 4"):
        tiny._replace(path=tmp_path).processor()
