"""Sampling and answering can be left between two calls of the language model, in every family."""

from __future__ import annotations

import pytest
import torch

from megaunigame.errors import Interrupted
from megaunigame.models.base import leavable
from megaunigame.models.causal import decoding


class Leaves:
    """A point of all ranks at which they agree to leave the second time."""

    def __init__(self):
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 2:
            raise Interrupted("left")


def sample(model, picture):
    inputs = model.processor.generate_prompts(["a cube"], [None])
    return model.sample(inputs, guidance=2.0, temperature=1.0, generator=torch.Generator().manual_seed(0))


def answer(model, picture):
    inputs = model.processor.prompt_inputs([[picture(0)]], ["what color is the cube ?"])
    return model.answer(inputs, max_new_tokens=6)


@pytest.mark.fault(
    "signal while a picture is drawn for an evaluation",
    does="left within 8 tokens, or one step of a solver",
    lost="the picture",
)
@pytest.mark.parametrize("work", [sample, answer])
def test_work_is_left_between_calls_and_equals_itself_afterwards(model, picture, work, monkeypatch):
    monkeypatch.setattr(decoding, "READS_TO_LEAVE_POINT", 2)
    model.train()
    training = [module.training for module in model.modules()]
    before = work(model, picture)
    point = Leaves()
    with pytest.raises(Interrupted), leavable(model, point):
        work(model, picture)
    assert point.calls == 2
    assert [module.training for module in model.modules()] == training
    assert torch.equal(work(model, picture), before)


def test_a_long_picture_has_a_point_every_eight_tokens():
    calls = []

    class Reader(decoding.CachedReader):
        def __init__(self):
            self.leave_point, self.reads, self.cached, self.positions = lambda: calls.append(self.reads), 0, {}, None
            self.language_model = lambda **_: type("Read", (), {"last_hidden_state": torch.zeros(1, 1, 2)})

    reader = Reader()
    for _ in range(17):
        reader._read(torch.zeros(1, 1, 2), None)
    assert calls == [8, 16]
