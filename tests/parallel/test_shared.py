"""Collectives with gradients; that a row read by several ranks has the gradient of one: tests/attention/test_sharing.py."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from megaunigame.parallel import shared
from megaunigame.parallel.shared import collect, exchange, mean, part_of
from tests.worlds import on_ranks


def test_values_and_gradients_are_those_of_one_process():
    """The loss of a rank weighs what it has by its number; of copies, each has the gradient that one process would give it."""

    def work(world):
        weight = float(world.rank + 1)
        whole = torch.arange(8.0).view(4, 2).requires_grad_()
        own = torch.full((2,), weight, requires_grad=True)
        parts = (10 * weight + torch.arange(4.0)).view(4, 1).requires_grad_()
        results = part_of(whole, world), collect(own, world), exchange(parts, world), mean(own, world)
        (sum(result.sum() for result in results) * weight).backward()
        return [result.detach().tolist() for result in results], whole.grad.tolist(), own.grad.tolist(), parts.grad.tolist()

    for rank, (values, of_whole, of_own, of_parts) in enumerate(on_ranks(4, work)):
        assert values[0] == [2.0 * rank, 2.0 * rank + 1]
        assert values[1] == [[1.0] * 2, [2.0] * 2, [3.0] * 2, [4.0] * 2]
        assert values[2] == [[10.0 * weight + rank] for weight in range(1, 5)] and values[3] == [2.5] * 2
        assert of_whole == [[weight / 4] * 2 for weight in range(1, 5)]
        assert of_own == [10.0 + 2.5] * 2, "from all that was collected, and the mean of the ranks' gradients"
        assert of_parts == [[1.0], [2.0], [3.0], [4.0]], "from where the part went"


def test_a_gradient_that_others_read_is_not_changed():
    """Autograd may give one tensor to all that read it."""

    def work(world):
        gradient = torch.full((2,), float(world.rank))
        into_value, _ = shared._Mean.backward(SimpleNamespace(ranks=world), gradient)
        return gradient.tolist(), into_value.tolist()

    assert on_ranks(3, work) == [([float(rank)] * 2, [1.0] * 2) for rank in range(3)]
