"""Rows read as a pack have the losses, states and gradients of rows padded side by side, in every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, left_padded, understand


def understand_rows(picture):
    """Of different lengths, with 0 to 3 pictures, and one row with nothing in it."""
    return [
        UnderstandRow([picture(0)], TURNS[:1]),
        UnderstandRow([picture(1), picture(2), picture(3)], TURNS),
        None,
        UnderstandRow([], TURNS[1:]),
    ]


def generate_rows(picture):
    return [
        GenerateRow("a cube", picture(0)),
        GenerateRow("its small green depth behind two blue balls", picture(1), picture(2)),
        None,
        GenerateRow("the same", picture(3), picture(0), unconditional=True),
    ]


def cases(model, picture):
    """Name -> inputs of a pass."""
    apart = [dataclasses.replace(row, independent=True) if row else None for row in understand_rows(picture)]
    plain = understand(model, *understand_rows(picture))
    return {
        "understand": plain,
        "padded in front": left_padded(understand(model, *understand_rows(picture)), extra=5),
        "independent turns": understand(model, *apart),
        "lengths not known": dataclasses.replace(plain, lengths=[]),
        "generate": generate(model, *generate_rows(picture)),
        "nothing": understand(model, None, None),
    }


def measured(model, inputs):
    """Losses, attention, hidden states and gradients of a pass whose rows weigh differently."""
    torch.manual_seed(0)
    model.zero_grad()
    tapped = dataclasses.replace(inputs, taps=Taps(tuple(range(len(model.layers()))), queries=5))
    output = model(tapped)
    weights = torch.arange(1.0, len(inputs.tokens) + 1)
    shares = torch.where(inputs.counts > 0, output.attention.keys, 0.0)
    ((weights * output.loss_sum).sum() + (weights * shares).sum()).backward()
    values = {"loss": output.loss_sum.detach(), "shares": shares.detach()}
    if inputs.pass_name == GENERATE:
        values["hidden"] = output.hidden.detach()
    return values, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pack_equals_padded_rows(tiny, picture, checkpointing):
    padded, packed = (tiny.load(gradient_checkpointing=checkpointing).train() for _ in range(2))
    packed.pack_rows()
    for model in (padded, packed):
        model.install_taps()
    for name, inputs in cases(padded, picture).items():
        expected, gradients = measured(padded, inputs)
        found, ours = measured(packed, inputs)
        for key, value in expected.items():
            atol = 1e-5 * max(1.0, value.abs().max().item())
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=atol, msg=lambda text, at=(name, key): f"{at} {text}")
        assert ours.keys() == gradients.keys(), name
        whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        off = {key: (ours[key] - gradient).norm() for key, gradient in gradients.items()}
        # Rounding; in float64 the difference is 1e-16. The path through a second transformer is longer.
        limit = 1e-5 if model.has_codes else 3e-5
        assert torch.stack(list(off.values())).norm() <= limit * whole, name
        assert not [key for key in off if off[key] > 1e-4 * gradients[key].norm() + 1e-6 * whole], name
