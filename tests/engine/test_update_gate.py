"""An update that is refused leaves weights, optimizer and counters as if only its samples had been read."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from megaunigame.engine.broken_weights import broken_weights
from megaunigame.engine.update_gate import UpdateGate
from megaunigame.engine.zero3 import Learner
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from
from tests.engine.learners import DS_CONFIGS, learner_of
from tests.multi_process.tiny_run import write_model

PLAN = plan_from([RowRequest("u", UNDERSTAND, "train", 3)])
SETTINGS = [(stage, precision) for stage in (2, 3) for precision in ("bf16", "fp32")]


def backward(learner: Learner, factor: float = 1.0) -> None:
    output = learner.forward(learner.module.processor.largest(PLAN, UNDERSTAND))
    learner.backward(factor * output.loss_sum.sum())


def masters_of(learner: Learner) -> list[torch.Tensor]:
    optimizer = learner.engine.optimizer
    stage3 = learner.zero_stage == 3
    return optimizer.fp32_partitioned_groups_flat if stage3 else optimizer.single_partition_of_fp32_groups


def state_of(learner: Learner) -> list[torch.Tensor]:
    """Masters and moments of every group, and the counters of the engine."""
    optimizer = learner.engine.optimizer
    moments = [value.clone() for state in optimizer.optimizer.state.values() for value in state.values()]
    masters = [p.detach().clone() for p in masters_of(learner)]
    assert sum(map(torch.numel, masters)) > 1000
    counters = [learner.engine.global_steps, learner.engine.micro_steps, optimizer.micro_step_id]
    return [*masters, *moments, torch.tensor(counters)]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.fault("gradient not finite", does="its update is skipped before a weight changes", lost="the samples of one step")
@pytest.mark.parametrize(("stage", "precision"), SETTINGS)
def test_a_refused_update_changes_nothing_but_the_count_of_steps(stage, precision, world, tmp_path):
    write_model(tmp_path / "model")
    learner, _ = learner_of(tmp_path, world, PLAN, stage, precision)
    learner.set_lr(1e-2)
    backward(learner)
    assert learner.update() and 0 < learner.grad_norm() < math.inf
    before = state_of(learner)
    for factor, accept in ((math.nan, lambda norm: True), (math.inf, math.isfinite), (1.0, lambda norm: norm < 0)):
        backward(learner, factor)
        asked = []
        assert not learner.update(lambda norm, accept=accept, asked=asked: asked.append(norm) or accept(norm))
        assert asked == [learner.grad_norm()] and math.isinf(asked[0]) == (factor != 1.0)
        before[-1] += torch.tensor([1, 1, 0])
        assert same(state_of(learner), before), (factor, state_of(learner)[-1], before[-1])
    backward(learner)
    assert learner.update() and math.isfinite(learner.grad_norm())
    assert not same(state_of(learner)[:-1], before[:-1])
    assert all(torch.isfinite(value).all() for value in state_of(learner))


@pytest.mark.parametrize("stage", [2, 3])
def test_the_norm_is_that_of_the_engine(stage, world, tmp_path):
    write_model(tmp_path / "model")
    learner, _ = learner_of(tmp_path, world, PLAN, stage, "fp32")
    for _ in range(2):
        backward(learner)
        assert learner.update()
        assert learner.grad_norm() == pytest.approx(float(learner.engine.get_global_grad_norm()), rel=1e-6)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_answer_holds_for_one_update(stage, world, tmp_path):
    write_model(tmp_path / "model")
    learner, _ = learner_of(tmp_path, world, PLAN, stage, "bf16")
    backward(learner)
    assert not learner.update(lambda norm: False)
    backward(learner)
    assert learner.update(), "the refusal of one step must not stay in the engine"


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_that_are_not_finite_are_found(stage, world, tmp_path):
    write_model(tmp_path / "model")
    learner, _ = learner_of(tmp_path, world, PLAN, stage, "bf16")
    assert broken_weights(learner.module, world, stage == 3) == []
    names = dict(learner.module.named_parameters())
    frozen = next(name for name, p in names.items() if not p.requires_grad)
    trained = next(name for name, p in names.items() if p.requires_grad and p.dim() == 1)
    for name, value, count in ((frozen, math.nan, 1), (trained, math.inf, 2)):
        held = names[name].ds_tensor if stage == 3 else names[name]
        held.data.view(-1)[:count] = value
    tokenizer, module = next(iter(learner.module.frozen_modules().items()))
    inside, tensor = next((n, t) for n, t in module.state_dict().items() if t.is_floating_point())
    tensor.view(-1)[0] = math.nan
    found = {weight.name: weight for weight in broken_weights(learner.module, world, stage == 3)}
    assert set(found) == {frozen, trained, f"{tokenizer}: {inside}"}
    assert (found[frozen].trained, found[frozen].elements) == (False, 1)
    assert (found[trained].trained, found[trained].elements) == (True, 2)
    assert found[trained].of == (names[trained].ds_numel if stage == 3 else names[trained].numel())
    assert not found[f"{tokenizer}: {inside}"].trained


@pytest.mark.parametrize("stage", [2, 3])
def test_an_optimizer_on_the_host_keeps_no_refused_gradient(stage, world, tmp_path, monkeypatch):
    monkeypatch.setitem(DS_CONFIGS, stage, f"tests/multi_process/zero{stage}_offload.json")
    write_model(tmp_path / "model")
    learner, _ = learner_of(tmp_path, world, PLAN, stage, "bf16")
    masters = masters_of(learner)
    backward(learner)
    assert learner.update()
    assert any(p.grad is not None and p.grad.any() for p in masters), "they are kept after an update"
    before = state_of(learner)[:-1]
    backward(learner, math.nan)
    assert not learner.update()
    assert all(p.grad is None or not p.grad.any() for p in masters) and same(state_of(learner)[:-1], before)


@pytest.mark.parametrize(("own", "largest", "made"), [(1.0, 1.0, True), (1.0, math.inf, False), (-1.0, -1.0, False)])
def test_ranks_agree_on_the_largest_norm(own, largest, made):
    """Of the sums of two ranks, and of the engine's sign for a norm that is not finite."""
    optimizer = SimpleNamespace(scaled_global_norm=lambda: torch.tensor(own), single_partition_of_fp32_groups=[])
    ranks = SimpleNamespace(device="cpu", all_reduce_max=lambda norm: torch.maximum(norm, torch.tensor([largest])))
    gate, asked = UpdateGate(optimizer, 2, ranks), []
    with gate.asking(lambda norm: asked.append(norm) or True):
        answered = optimizer.scaled_global_norm()
        assert optimizer.check_grad_overflow != made
    assert (gate.accepted, bool(torch.isfinite(answered))) == (made, made)
    assert asked == [gate.norm] == [1.0 if made else math.inf] and not optimizer.check_grad_overflow


def test_a_step_of_the_engine_that_asks_nobody_is_no_update():
    optimizer = SimpleNamespace(scaled_global_norm=None, single_partition_of_fp32_groups=[])
    gate = UpdateGate(optimizer, 2, SimpleNamespace())
    with gate.asking(lambda norm: True):
        pass
    assert not gate.accepted
