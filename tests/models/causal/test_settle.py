"""Choices that rounding could change are those of the row by itself."""

from __future__ import annotations

import pytest
import torch

from megaunigame.errors import ModelError
from megaunigame.models.causal.decoding import ROUNDING, picker, settle

ROWS, VOCABULARY, ERROR = 4000, 7, 2e-2


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.5])
def test_logits_that_are_off_lead_to_the_same_choices(temperature):
    """Each row has a generator of its own; the logits of the batch are off by up to ERROR, at random."""
    random = torch.Generator().manual_seed(1)
    own = torch.randn(ROWS, VOCABULARY, generator=random)
    batch = own + ERROR * (2 * torch.rand(ROWS, VOCABULARY, generator=random) - 1)
    size = torch.full((ROWS,), ERROR / ROUNDING)
    asked: list[int] = []

    def alone(row: int) -> torch.Tensor:
        asked.append(row)
        return own[row : row + 1]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in range(ROWS)]

    by_itself = picker(temperature, generators())(own)
    pick = picker(temperature, generators())
    chosen = pick(batch)
    assert 5 < (chosen != by_itself).sum() < ROWS / 10
    assert torch.equal(settle(pick, chosen, batch, size, alone), by_itself)
    assert 0 < len(asked) < ROWS / 5 and len(set(asked)) == len(asked)


@pytest.mark.parametrize(("temperature", "share"), [(0.5, 0.64 / 0.68), (1.0, 0.8), (2.0, 2 / 3)])
def test_a_low_temperature_prefers_the_likelier_choice(temperature, share):
    """Of probabilities 0.2 and 0.8: p^(1 / temperature), normalized."""
    logits = torch.tensor([0.2, 0.8]).log().expand(20_000, 2)
    drawn = picker(temperature, torch.Generator().manual_seed(0))(logits)
    assert drawn.float().mean().item() == pytest.approx(share, abs=0.015)


def test_sure_choices_ask_for_nothing():
    logits = torch.tensor([[9.0, 0.0, 1.0], [0.0, 9.0, 1.0]])
    pick = picker(0.0, None)
    settled = settle(pick, pick(logits), logits, torch.full((2,), 9.0), lambda row: pytest.fail(f"row {row} is sure"))
    assert settled.tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value, is_legal", [(3.0, True), (-torch.inf, True), (torch.inf, False), (torch.nan, False)])
def test_a_choice_from_numbers_that_are_not_finite_is_refused(temperature, value, is_legal):
    pick = picker(temperature, torch.Generator().manual_seed(1))
    pick.check_finite()
    pick(torch.tensor([[1.0, 2.0, 0.5], [0.0, value, 1.0]]))
    pick(torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 2.0]]))
    if is_legal:
        pick.check_finite()
    else:
        with pytest.raises(ModelError, match="not finite.*type --dtype bfloat16"):
            pick.check_finite()
