"""A step that breaks again after another launch has kept its rows."""

from __future__ import annotations

import math

import pytest

from megaunigame.monitoring import names
from megaunigame.training import kept_rows
from tests.multi_process.programs import LORA, batches_of, trainer_of
from tests.multi_process.tiny_run import write_data, write_model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    write_model(folder / "model")
    write_data(folder / "shards")
    return folder


def break_losses(trainer) -> None:
    forward = trainer.learner.forward

    def broken(inputs):
        output = forward(inputs)
        return output._replace(loss_sum=output.loss_sum * math.nan)

    trainer.learner.forward = broken


@pytest.mark.fault(
    "a step breaks again after a resume with fewer ranks", does="rows that the earlier launch kept of it are deleted", lost=""
)
def test_rows_of_an_earlier_launch_are_not_mixed_with_these(home, world):
    trainer = trainer_of("again", home, world, model=LORA, schedule={"steps": 9})
    folder = kept_rows.step_folder(trainer.folder, 1)
    folder.mkdir(parents=True)
    for rank in (0, 1, 7):
        for end in ("json", "safetensors"):
            (folder / f"rank-{rank:05d}.{end}").write_text("of an earlier launch")
    break_losses(trainer)
    assert trainer.train_step(batches_of(trainer, 1))[names.OPTIM_SKIPPED] == 1
    assert sorted(file.name for file in folder.iterdir()) == ["rank-00000.json", "rank-00000.safetensors"]
    (kept,) = kept_rows.read(folder)
    assert kept.world_size == 1


def test_rows_that_cannot_be_deleted_are_told_of(home, world, monkeypatch, caplog):
    def fail(folder):
        raise OSError("no rights")

    monkeypatch.setattr(kept_rows, "clear", fail)
    trainer = trainer_of("stale", home, world, model=LORA, schedule={"steps": 9})
    break_losses(trainer)
    trainer.train_step(batches_of(trainer, 1))
    assert "Rows of an earlier launch could not be deleted, and are mixed with these (no rights)" in caplog.text
