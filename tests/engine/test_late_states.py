"""What only the first update makes is known before it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megaunigame.engine.dry_run import checked_peak, late_state_bytes, uncovered_bytes
from megaunigame.engine.parameters import element_count
from megaunigame.errors import CapacityError
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from
from tests.engine.learners import learner_of
from tests.multi_process.tiny_run import write_model

PLAN = plan_from([RowRequest("u", UNDERSTAND, "train", 3)])


@pytest.mark.parametrize("stage", [2, 3])
def test_moments_come_with_the_first_update(stage, world, tmp_path):
    write_model(tmp_path / "model")
    learner, ds_config = learner_of(tmp_path, world, PLAN, stage)
    elements = sum(element_count(p) for p in learner.module.parameters() if p.requires_grad)
    gradients = 4 * elements if stage == 2 else 0
    assert learner.moment_bytes() == 0 and late_state_bytes(learner, ds_config) == 8 * elements + gradients
    offloaded = {**ds_config, "zero_optimization": {**ds_config["zero_optimization"], "offload_optimizer": {"device": "cpu"}}}
    assert late_state_bytes(learner, offloaded) == 0

    output = learner.forward(learner.module.processor.largest(PLAN, UNDERSTAND))
    learner.backward(output.loss_sum.sum())
    learner.update()
    assert learner.moment_bytes() == 8 * elements and late_state_bytes(learner, ds_config) == gradients


@pytest.mark.parametrize("tight", ["here", "there", "nowhere"])
def test_a_rank_without_room_stops_all(tight, world, tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    learner, ds_config = learner_of(tmp_path, world, PLAN, stage=3)
    needed = 1000 + uncovered_bytes(learner.module, ds_config, 1) + late_state_bytes(learner, ds_config)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 600)
    free = needed - 600 - (tight == "here")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    other = (1 if tight == "there" else -5, 2000, 3000, 4000)
    learner.world = SimpleNamespace(device=torch.device("cuda", 0), size=1, all_gather_object=lambda value: [value, other])
    ran = []
    if tight == "nowhere":
        with checked_peak(learner, ds_config):
            ran.append(1)
    else:
        with pytest.raises(CapacityError, match="The largest step does not fit"), checked_peak(learner, ds_config):
            ran.append(1)
    assert ran == [1]
