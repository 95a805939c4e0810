"""Evaluations are left between model calls, by all ranks together, and leave no result."""

from __future__ import annotations

import copy
import signal

import pytest
import torch

from megaunigame.errors import Interrupted
from megaunigame.evaluation.run import evaluation_file, run_evaluation
from megaunigame.evaluation.suites.generation import Generation
from megaunigame.evaluation.suites.questions import Questions
from megaunigame.evaluation.suites.reconstruction_questions import ReconstructionQuestions
from megaunigame.evaluation.suites.teacher_forced import TeacherForced
from megaunigame.evaluation.suites.tokenizer import Tokenizer
from megaunigame.models.base import leavable
from megaunigame.parallel.interruption import SAVES, Interruption
from tests.evaluation.fakes import FakeModel, bright_dark, write_tars
from tests.worlds import on_ranks

SUITES = {
    "questions": Questions,
    "generation": Generation,
    "reconstruction_questions": ReconstructionQuestions,
    "teacher_forced": TeacherForced,
    "tokenizer": Tokenizer,
}


@pytest.mark.fault(
    "signal on one rank during an evaluation",
    does="all ranks leave it between two model calls and save; the next launch does it again",
    lost="the evaluation begun",
)
@pytest.mark.parametrize("name", SUITES)
def test_both_ranks_leave_at_the_same_call(name, tmp_path):
    """Rank 1 is told in its third call; the ranks have made equally many calls when they leave."""
    shards = write_tars(tmp_path / "shards", bright_dark(16))
    extra = {"representations": ["pixel"]} if name == "tokenizer" else {}
    suite = SUITES[name](SUITES[name].Config(shards=shards, batch=2, limit=16, **extra))

    def rank(world):
        stop, model = Interruption(), FakeModel()
        stop.phase = SAVES
        calls = model.calls

        class Telling(list):
            def append(self, call):
                super().append(call)
                if world.rank == 1 and len(self) == 3:
                    stop.take(signal.SIGTERM, 0.0)

        model.calls = calls = Telling()
        point = lambda: stop.leave_if_agreed(world)  # noqa: E731
        with pytest.raises(Interrupted):
            run_evaluation(model, {name: copy.deepcopy(suite)}, world, 4, tmp_path, point)
        return [call for call, _ in calls], model.training, model.leave_point is point

    (ours, training, kept), (theirs, *_) = on_ranks(2, rank)
    assert ours == theirs and 3 <= len(ours) <= 6
    assert training and not kept, "the model is as it was"
    assert not evaluation_file(tmp_path, 4).exists()


def test_nobody_leaves_unasked(tmp_path):
    shards = write_tars(tmp_path / "shards", bright_dark(8))
    suite = Questions(Questions.Config(shards=shards, batch=2))

    def rank(world):
        stop = Interruption()
        run_evaluation(FakeModel(), {"q": copy.deepcopy(suite)}, world, 4, tmp_path, lambda: stop.leave_if_agreed(world))

    on_ranks(2, rank)
    assert evaluation_file(tmp_path, 4).exists()


def test_points_are_put_back_after_an_error():
    model, before = FakeModel(), FakeModel.leave_point
    with pytest.raises(ZeroDivisionError), leavable(model, lambda: 1 / 0):
        model.leave_point()
    assert model.leave_point is before and not torch.is_inference_mode_enabled()
