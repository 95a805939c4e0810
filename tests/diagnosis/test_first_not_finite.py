"""The innermost module, in the order of the passes, that first makes something that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from megaunigame.diagnosis.first_not_finite import FirstNotFinite, tensors_in


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1))


def test_a_finite_model():
    net = model()
    with FirstNotFinite(net) as first:
        net(torch.ones(1, 2)).sum().backward()
    assert (first.forward, first.backward) == ("", "")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0", "1.0", "2"])
def test_the_module_of_a_broken_weight(name, bad):
    net = model()
    net.get_submodule(name).bias.data[:] = bad
    with FirstNotFinite(net) as first:
        net(torch.ones(1, 2))
    assert first.forward == name


def test_the_gradient_of_an_output():
    net = model()

    def break_gradient(module, args, output):
        output.register_hook(lambda gradient: gradient * math.nan)

    net[0].register_forward_hook(break_gradient)
    with FirstNotFinite(net) as first:
        net(torch.ones(1, 2)).sum().backward()
    assert (first.forward, first.backward) == ("", "0")


def test_hooks_are_gone_after_the_block():
    net = model()
    with FirstNotFinite(net) as first:
        pass
    net(torch.full((1, 2), math.nan))
    assert first.forward == ""


def test_tensors_are_found_wherever_they_are():
    one, two, whole = torch.ones(1), torch.zeros(2), torch.ones(1, dtype=torch.long)
    assert list(tensors_in({"a": [one, (whole, None, "x")], "b": two})) == [one, two]
