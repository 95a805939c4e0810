"""Attention that is measured in the passes of every family equals the maps of eager attention, values and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.step.inputs import IGNORE, Taps
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, understand


def rows_of(model, picture, name):
    if name == UNDERSTAND:
        rows = UnderstandRow([picture(0)], TURNS[:1]), UnderstandRow([picture(1), picture(2)], TURNS), UnderstandRow([], TURNS)
        return understand(model, *rows)
    return generate(model, GenerateRow("a cube", picture(0)), GenerateRow("its small green depth", picture(1), picture(2)))


def queries_and_keys(model, inputs, row, size):
    """Positions: answers and pictures; codes or queries that are drawn, and the text that asks for them."""
    width, real, image = inputs.tokens.shape[1], inputs.attention[row].tolist(), inputs.image_positions[row].tolist()
    if inputs.pass_name == UNDERSTAND:
        return [p for p in range(width) if inputs.labels[row, p] != IGNORE], [p for p in range(width) if image[p]]
    grid = getattr(model, "grid", None)
    line_end = None if grid is None else grid.line_end
    text = [p for p in range(width) if real[p] and not image[p] and inputs.tokens[row, p] != line_end]
    if model.name == "bagel":  # the end token of the picture comes before its latent tokens, which are the last ones
        return list(range(size - model.processor.after_prompt, size)), [p for p in text if p < width - 1]
    drawn = range(width, size if grid is None else min(size, width + grid.length))  # without the end of a picture
    return [p for p in drawn if line_end is None or (p - width) % (grid.width + 1) != grid.width], text


def by_maps(model, inputs):
    """(L, B): the share of attention that queries give to keys, map by map and row by row; 0 without keys."""
    maps = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda m, a, out: maps.append(out[1])) for layer in model.language_model.layers
    ]
    loss = model(inputs).loss_sum.sum()
    for hook in hooks:
        hook.remove()
    shares = []
    for attention in maps:
        assert attention is not None, "eager attention gives no maps"
        for row in range(len(inputs.tokens)):
            queries, keys = queries_and_keys(model, inputs, row, attention.shape[-1])
            assert queries
            shares.append(attention[row][:, queries][:, :, keys].sum(-1).mean() if keys else torch.zeros(()))
    return torch.stack(shares).view(len(maps), -1), loss


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [UNDERSTAND, GENERATE])
def test_shares_and_gradients_are_those_of_the_maps(tiny, picture, name, checkpointing):
    eager, model = tiny.load(attention="eager"), tiny.load(attention="sdpa", gradient_checkpointing=checkpointing).train()
    inputs = rows_of(model, picture, name)
    torch.manual_seed(0)
    expected, loss = by_maps(eager.train(), inputs)
    model.install_taps()
    torch.manual_seed(0)
    output = model(dataclasses.replace(inputs, taps=Taps(tuple(range(len(expected))))))
    torch.testing.assert_close(output.attention.keys, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss_sum.sum(), loss, rtol=1e-5, atol=1e-4)
    assert expected.max() > 0.05 and expected.std() > 1e-3, "attention is even, nothing was compared"
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for shares in (expected, output.attention.keys):
        (weights * shares).sum().backward()
    ours, theirs = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (model, eager))
    assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-3
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-5, msg=key)
