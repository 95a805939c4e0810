"""What a run has saved when an error that all ranks raise ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from megaunigame.config import load_recipe
from megaunigame.data.loading.bad_samples import BadSample
from megaunigame.errors import CheckpointError, DataError, LockstepError, LostShard
from megaunigame.monitoring.monitor import Monitor
from megaunigame.parallel.interruption import SAVES
from megaunigame.parallel.mesh import Mesh
from megaunigame.training.trainer import Trainer
from tests.multi_process.tiny_run import write_data, write_model, write_recipe

BAD = BadSample("train", "x", "a.tar", "it is broken", 7)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    write_model(folder / "model")
    write_data(folder / "shards")
    return folder


def raising(error: Exception) -> Callable[..., None]:
    def fails(*_: object) -> None:
        raise error

    return fails


def run(
    home, world, output, every: int, trouble: Callable[[Trainer], object], *, workers: int = 0, first=lambda trainer: None
) -> Trainer:
    """A run that begins with `first(trainer)`, and whose third step begins with `trouble(trainer)`."""

    class Troubled(Trainer):
        def _loader(self):
            self.batches = super()._loader()
            return self.batches

        def train_step(self, micro_batches):
            if self.state.step == 2:
                trouble(self)
            return super().train_step(micro_batches)

    recipe = write_recipe(
        home / "recipe.yaml", home, checkpoint={"every": every}, loader={"workers": 0, "max_bad_fraction": 0.0}
    )
    trainer = Troubled(load_recipe(str(recipe), [f"output={output}"]), Mesh.of(world))
    first(trainer)
    try:
        trainer.fit()
    finally:
        trainer.batches.close()  # its thread ends, too
    return trainer


def saved(output) -> list[str]:
    """Names of the complete checkpoints."""
    return sorted(path.parent.name for path in output.glob("checkpoints/step-*/manifest.json"))


def full_list(trainer: Trainer) -> None:
    trainer.bad_samples.max_bad_fraction = 1.0
    trainer.stepper.fetcher.quarantine._append = raising(OSError(28, "No space left on device"))
    micro_step = trainer.micro_batches.made
    trainer.micro_batches.made = lambda *args: with_bad(micro_step(*args))


def with_bad(batch):
    batch.bad.append(BAD)
    return batch


@pytest.mark.fault(
    "too many bad samples while a save is being written", does="completes the save, then ends", lost="nothing saved"
)
@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        (DataError, lambda trainer: trainer.bad_samples.add(trainer.plan, [BAD])),
        (DataError, lambda trainer: setattr(trainer.rows, "merge", raising(DataError("no rows")))),
        (OSError, full_list),
        (LockstepError, lambda trainer: setattr(trainer.stepper.lockstep, "check", raising(LockstepError("not the same")))),
    ],
    ids=["bad samples", "rows", "quarantine", "lockstep"],
)
def test_a_save_that_is_being_written_is_completed(home, world, tmp_path, kind, trouble):
    with pytest.raises(kind):
        run(home, world, tmp_path, 2, trouble)
    assert saved(tmp_path) == ["step-00000002"]


@pytest.mark.fault(
    "data that cannot be fetched, long after the last save", does="saves the last step, then ends", lost="nothing"
)
def test_the_last_step_is_saved_when_data_cannot_be_fetched(home, world, tmp_path):
    def lose(trainer: Trainer) -> None:
        trainer.streams["train"].source.find = raising(DataError("its index is broken"))

    with pytest.raises(DataError, match="its index is broken"):
        run(home, world, tmp_path, 100, lose)
    assert saved(tmp_path) == ["step-00000002"]


def test_trackers_and_console_are_closed_when_an_error_ends_the_run(home, world, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Monitor, "close", lambda monitor, complete: closed.append(complete))

    def lose(trainer: Trainer) -> None:
        trainer.streams["train"].source.find = raising(DataError("its index is broken"))

    with pytest.raises(DataError, match="its index is broken"):
        run(home, world, tmp_path, 100, lose)
    assert closed == [False]


def test_the_error_of_the_data_is_told_also_when_nothing_can_be_saved(home, world, tmp_path, caplog):
    def lose(trainer: Trainer) -> None:
        trainer.streams["train"].source.find = raising(DataError("its index is broken"))
        trainer.parts.checkpoints.begin = raising(CheckpointError("the disk is full"))

    with pytest.raises(DataError, match="its index is broken"):
        run(home, world, tmp_path, 100, lose)
    assert "Step 2 could not be saved: the disk is full" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_while_a_shard_is_lost_saves_the_last_step(home, world, tmp_path, workers):
    sent = []

    def stop(trainer: Trainer) -> None:
        sent.append(time.monotonic())
        trainer.stop.take(signal.SIGTERM, 0.0)

    def lose(trainer: Trainer) -> None:
        trainer.stop.phase = SAVES
        threading.Timer(0.5, stop, (trainer,)).start()

    def lost(trainer: Trainer) -> None:
        source, made = trainer.streams["train"].source, trainer.micro_batches.made

        def third_is_lost(micro_step: int, *note: object):
            if micro_step == 2:
                source.find = raising(LostShard("a.tar is gone.", "a.tar"))
            return made(micro_step, *note)

        trainer.micro_batches.made = third_is_lost

    trainer = run(home, world, tmp_path, 100, lose, workers=workers, first=lost)
    assert trainer.interrupted.startswith("interrupted by SIGTERM after step 2; saved step-00000002")
    assert saved(tmp_path) == ["step-00000002"]
    assert time.monotonic() - sent[0] < 15, "the wait for the shard, 18 seconds, was not left"
