"""Every pass on plain meta tensors, forward and backward: what a plan of memory counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.step.inputs import Taps
from tests.devices.fake_device import load, move
from tests.devices.rows import collated
from tests.devices.test_passes import gradients_arrive

META = torch.device("meta")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_and_backward(home, family, checkpointing):
    model = load(family, home, checkpointing)
    rows = collated(model)
    model.install_taps()
    move(model, META, torch.bfloat16)
    move(model.frozen.module, META)
    losses = []
    for given in rows.values():
        output = model(dataclasses.replace(given.to(META), taps=Taps((0, 1), queries=2)))
        losses += [output.loss_sum.sum(), output.attention.keys.sum()]
    torch.stack(losses).sum().backward()
    gradients_arrive(model, META)
