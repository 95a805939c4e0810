"""Random numbers and head of ranks that share their rows; all else they compute is in tests/multi_process/shared_rows.py."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megaunigame.attention import sharing
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.causal.shared_rows import SharedRows, _own_dropout
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.inputs import IGNORE
from tests.worlds import on_ranks


def test_ranks_drop_out_other_numbers_and_go_on_with_the_same():
    """The same mask for every part of a row would be a pattern in it; other numbers after the layers would be other rows."""
    inside, after = [], []
    for rank in range(3):
        torch.manual_seed(7)
        torch.rand(2)
        with _own_dropout(Ranks(rank, 3, rank, torch.device("cpu")), torch.device("cpu")):
            inside.append(torch.rand(4).tolist())
        after.append(torch.rand(4).tolist())
    assert len({*map(tuple, inside)}) == 3 and len({*map(tuple, after)}) == 1


@pytest.mark.parametrize(
    ("module", "attention", "drops"),
    [(nn.Dropout(0.1), 0.0, True), (nn.Dropout(0.0), 0.1, True), (nn.Dropout(0.0), 0.0, False)],
    ids=["of adapters", "of attention", "none"],
)
def test_dropout_of_layers_and_of_attention_is_found(monkeypatch, module, attention, drops):
    installed = []
    monkeypatch.setattr(sharing, "install", installed.append)
    layers = nn.Sequential(nn.Linear(2, 2), module)
    layers.config = SimpleNamespace(attention_dropout=attention)
    model, ranks = SimpleNamespace(language_model=layers), Ranks(0, 2, 0, torch.device("cpu"))
    SharedRows.share_sequence(model, ranks)
    assert (model.drops, model.sequence, installed) == (drops, ranks, [layers])


@pytest.mark.parametrize(("ranks", "positions"), [(2, 9), (3, 9), (4, 2)])
def test_the_head_of_ranks_that_share_a_row_gives_the_scores_of_one(ranks, positions):
    """No number of positions that the ranks divide, and ranks without any; the sum of the ranks' gradients too."""
    torch.manual_seed(ranks)
    head, states = TokenHead(6, 11), torch.randn(positions, 6)
    labels = torch.randint(1, 11, (positions,))
    labels[1] = IGNORE
    weights = torch.arange(1.0, positions + 1)

    def scored(world):
        own_head, own_states = copy.deepcopy(head), states.clone().requires_grad_()
        scores = SharedRows._scores(SimpleNamespace(sequence=world, lm_head=own_head), own_states, labels)
        (scores.losses * weights).sum().backward()
        return scores.losses.detach(), scores.likeliest, own_head.weight.grad, own_states.grad

    expected = scored(None)
    found = on_ranks(ranks, scored)
    for losses, likeliest, _, of_states in found:
        torch.testing.assert_close(losses, expected[0])
        assert torch.equal(likeliest, expected[1])
        torch.testing.assert_close(of_states, expected[3])  # each copy of the states has the whole gradient
    # Each rank has the loss of all positions: the sum of the gradients of a weight is so many times that of one.
    torch.testing.assert_close(sum(of_rank[2] for of_rank in found) / ranks, expected[2])
