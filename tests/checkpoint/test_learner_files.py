"""The learner of one process: saved, loaded into a fresh engine, and trained on to the same bits."""

from __future__ import annotations

import pytest
import torch

from megaunigame.checkpoint.learner_files import load, pending_files, signature
from megaunigame.checkpoint.saved_learner import FILE, SavedLearner
from megaunigame.engine.optimizer_slices import OptimizerSlices
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from
from tests.engine.learners import learner_of
from tests.multi_process.tiny_run import write_model

PLAN = plan_from([RowRequest("u", UNDERSTAND, "train", 2)])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learner")
    write_model(folder / "model")
    return folder


def update(learner: Learner, times: int = 1) -> None:
    learner.set_lr(1e-2)
    for _ in range(times):
        inputs = learner.module.processor.largest(PLAN, UNDERSTAND)
        learner.backward(learner.forward(inputs).loss_sum.sum() / 50)
        learner.update()


def saved(learner: Learner, folder):
    folder.mkdir()
    for file in pending_files(learner):
        file.write(folder)
    return folder


def content(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("then", "now"), [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_a_fresh_engine_goes_on_as_the_old_one(home, world, tmp_path, precision, then, now):
    learner, _ = learner_of(home, world, PLAN, then, precision)
    update(learner, 2)
    files = pending_files(learner)  # written later, when the learner has gone on
    name = signature(learner)
    update(learner)
    after = saved(learner, tmp_path / "after")
    (tmp_path / "two").mkdir()
    for file in files:
        file.write(tmp_path / "two")

    legal = 0.0 if then == now else 1e-6  # the stages add up the norm of the gradient in different orders
    fresh, _ = learner_of(home, world, PLAN, now, precision)
    assert signature(fresh) == name and OptimizerSlices(fresh).updates() == 0
    load(fresh, tmp_path / "two")
    assert OptimizerSlices(fresh).updates() == fresh.engine.global_steps == 2
    moments = list(fresh.engine.optimizer.optimizer.state.values())
    assert all(not value.requires_grad and value.dtype == torch.float32 for state in moments for value in state.values())
    update(fresh)
    ours, theirs = SavedLearner(saved(fresh, tmp_path / "fresh")), SavedLearner(after)
    assert ours.updates == theirs.updates == 3
    for parameter, layout in ours.layouts.items():
        for kind in ours.kinds:
            pair = [torch.full((layout.numel,), torch.nan) for _ in range(2)]
            for one, tensor in zip((ours, theirs), pair, strict=True):
                one.read_into(tensor, kind, parameter, range(layout.numel))
            error = (pair[0] - pair[1]).abs().max().item()
            assert error <= legal, (kind, parameter, error)


@pytest.mark.parametrize("stage", [2, 3])
def test_nothing_is_changed_when_a_file_is_missing(home, world, tmp_path, stage):
    learner, _ = learner_of(home, world, PLAN, stage)
    update(learner)
    folder = saved(learner, tmp_path / "one")
    fresh, _ = learner_of(home, world, PLAN, stage)
    before, files = weights(fresh), content(saved(fresh, tmp_path / "before"))
    assert SavedLearner(tmp_path / "before").updates == 0
    (folder / FILE.format(0)).unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load(fresh, folder)
    assert content(saved(fresh, tmp_path / "still")) == files
    assert all(torch.equal(value, before[name]) for name, value in weights(fresh).items())


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_from_before_the_first_update_takes_moments_away(home, world, tmp_path, stage):
    learner, _ = learner_of(home, world, PLAN, stage)
    files = content(saved(learner, tmp_path / "none"))
    update(learner)
    load(learner, tmp_path / "none")
    assert learner.moment_bytes() == 0 and content(saved(learner, tmp_path / "again")) == files


def test_other_trained_groups_are_refused(home, world, tmp_path):
    learner, _ = learner_of(home, world, PLAN, 3)
    folder = saved(learner, tmp_path / "one")
    other, _ = learner_of(home, world, PLAN, 3, groups=["aligner"])
    assert signature(other) != signature(learner)
    with pytest.raises(CheckpointError, match="other trained groups.*are not trained here, such as"):
        load(other, folder)
