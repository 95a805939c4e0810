"""The adversary's AdamW against torch's own, the sum over ranks, and the state that a checkpoint keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from megaunigame.adversary.optimizer import ReplicatedAdamW
from tests.worlds import OneRank, ThreadWorld, on_ranks

STEPS, CLIP, DECAY = 3, 0.7, 0.1
RATES = (0.1, 0.03, 0.2)


def parameters() -> list[nn.Parameter]:
    """A gate, a matrix and a vector, as the perturber has them."""
    return [nn.Parameter(drawn) for drawn in gradients(-100)]


def gradients(seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return [scale * torch.randn(shape, generator=generator) for shape in ((1,), (4, 3), (4,))]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def plain(steps: list[list[Tensor]]) -> list[nn.Parameter]:
    """torch's AdamW with torch's clipping."""
    trained = parameters()
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=DECAY)
    for lr, step in zip(RATES, steps, strict=True):
        for parameter, gradient in zip(trained, step, strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    return trained


def replicated(trained: list[nn.Parameter]) -> ReplicatedAdamW:
    return ReplicatedAdamW(trained, clip=CLIP, weight_decay=DECAY)


def updated(*seeds: int) -> tuple[list[nn.Parameter], ReplicatedAdamW]:
    """After one update on one rank for each of the seeds of gradients."""
    trained = parameters()
    optimizer = replicated(trained)
    for seed in seeds:
        optimizer.step(gradients(seed), 0.1, OneRank())
    return trained, optimizer


@pytest.mark.parametrize("scale", [0.01, 1.0], ids=["below the clip", "above the clip"])
def test_one_process_equals_torch(scale):
    steps = [gradients(i, scale) for i in range(STEPS)]
    trained = parameters()
    optimizer = replicated(trained)
    for lr, step in zip(RATES, steps, strict=True):
        norm = optimizer.step(step, lr, OneRank())
        assert norm == pytest.approx(flat(step).norm().item())
        assert (norm > CLIP) == (scale == 1.0)
        assert all(p.grad is None for p in trained)
    torch.testing.assert_close(flat(trained), flat(plain(steps)), rtol=1e-6, atol=1e-7)
    assert (flat(trained) - flat(parameters())).abs().min() > 1e-3, "nothing moved, so nothing was compared"


def test_ranks_are_summed_before_clipping():
    """Two ranks with a share of the gradient each make the update of one that has it all, in one reduction per step."""
    own, other = [gradients(i) for i in range(STEPS)], [gradients(50 + i) for i in range(STEPS)]
    together = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(own, other, strict=True)]

    def work(world: ThreadWorld) -> list[nn.Parameter]:
        trained = parameters()
        optimizer = replicated(trained)
        for number, (lr, mine, both) in enumerate(zip(RATES, (own, other)[world.rank], together, strict=True), start=1):
            assert optimizer.step(mine, lr, world) == pytest.approx(flat(both).norm().item())
            assert world.calls == [("all_reduce_sum", 17)] * number
        return trained

    first, second = on_ranks(2, work)
    torch.testing.assert_close(flat(first), flat(plain(together)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flat(first), flat(second), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["here", "on another rank"])
def test_a_gradient_that_is_not_finite_updates_nothing(bad, where):
    trained, optimizer = updated(0)
    weights, state = flat(trained).clone(), {n: t.clone() for n, t in optimizer.tensors().items()}
    step, other = gradients(1), gradients(2)
    (step if where == "here" else other)[1][2, 0] = bad
    ranks = [(optimizer, step), (replicated(parameters()), other)]
    norm, _ = on_ranks(2, lambda world: ranks[world.rank][0].step(ranks[world.rank][1], 0.1, world))
    assert not torch.isfinite(torch.tensor(norm))
    assert torch.equal(flat(trained), weights)
    after = optimizer.tensors()
    assert after.keys() == state.keys() and all(torch.equal(after[n], state[n]) for n in state)
    # It is not poisoned either: the next update is that of an optimizer that never saw the bad step.
    optimizer.step(gradients(3), 0.1, OneRank())
    spared, _ = updated(0, 3)
    assert torch.equal(flat(trained), flat(spared))


def test_the_caller_keeps_its_gradients():
    steps = [gradients(0, 5.0), gradients(1)]
    before = copy.deepcopy(steps)
    on_ranks(2, lambda world: replicated(parameters()).step(steps[world.rank], 0.1, world))
    assert all(torch.equal(a, b) for a, b in zip(sum(steps, []), sum(before, []), strict=True))


def test_there_is_no_state_before_the_first_update():
    trained = parameters()
    optimizer = replicated(trained)
    assert optimizer.tensors() == {}
    optimizer.load_tensors({})
    optimizer.step(gradients(0), 0.1, OneRank())
    assert torch.equal(flat(trained), flat(updated(0)[0]))


def test_state_survives_bit_by_bit():
    trained, optimizer = updated(0, 1)
    saved = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    assert set(saved) == {f"{i}.{n}" for i in range(3) for n in ("exp_avg", "exp_avg_sq", "step")}

    revived = [nn.Parameter(p.detach().clone()) for p in trained]
    other = replicated(revived)
    other.load_tensors(saved)
    loaded = other.tensors()
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    for one in (optimizer, other):
        one.step(gradients(2), 0.05, OneRank())
    assert torch.equal(flat(trained), flat(revived))


def test_loading_keeps_the_settings_of_this_run():
    """Weight decay is a setting; the moments of another run bring none of theirs."""
    _, optimizer = updated(0)
    other = ReplicatedAdamW(parameters(), clip=CLIP, weight_decay=0.5)
    other.load_tensors(optimizer.tensors())
    assert other.optimizer.param_groups[0]["weight_decay"] == 0.5
