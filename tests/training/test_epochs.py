"""Schedules in epochs: how many steps they are, on any number of ranks and after any interruption."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.config import ScheduleConfig, as_yaml, load_recipe
from megaunigame.data.sources.base import Cursor, Stream
from megaunigame.data.sources.blend import Blend
from megaunigame.parallel.mesh import Mesh
from megaunigame.training.epochs import count_epochs, in_steps
from megaunigame.training.trainer import Trainer
from tests.data.test_blend import Counted
from tests.multi_process.programs import LORA, batches_of
from tests.multi_process.tiny_run import write_data, write_model, write_recipe
from tests.refusals import refused


def streams_of(**samples: int | None) -> dict[str, Stream]:
    streams = {name: Stream(name, Counted(name, count or 1, 0)) for name, count in samples.items()}
    for name, count in samples.items():
        streams[name].source.epoch = count
    return streams


def counted(epochs: float, samples: dict[str, int | None], per_step: dict[str, int], of: str = "", done: int = 0, **used: int):
    schedule = ScheduleConfig(epochs=epochs, epochs_of=of)
    cursors = {name: Cursor(0, position, {}) for name, position in used.items()}
    return count_epochs(schedule, streams_of(**samples), per_step, done, cursors)


def of_samples(epochs: float, samples: int) -> int:
    """As they are written down: 0.07 of 10,000 is 700."""
    return math.ceil(Fraction(str(epochs)) * samples)


def test_the_stream_that_needs_most_steps_decides():
    samples, per_step = {"chat": 100, "pictures": 30}, {"chat": 8, "pictures": 2}
    found = counted(3, samples, per_step)
    assert (found.stream, found.steps) == ("pictures", 45)
    assert str(found) == "3 epochs of data.pictures (30 samples, 2 a step)"
    found = counted(3, samples, per_step, of="chat")
    assert (found.stream, found.steps) == ("chat", 38), "the last step begins a fourth epoch"
    assert str(counted(1, samples, per_step)).startswith("1 epoch of data.pictures")
    assert counted(0.5, samples, per_step, of="pictures").steps == 8
    assert counted(1e-6, samples, per_step).steps == 1


@given(
    samples=st.integers(1, 300),
    epochs=st.floats(0.1, 5),
    rows=st.integers(1, 7),
    more_rows=st.integers(1, 7),
    done=st.integers(0, 60),
)
def test_an_interruption_changes_nothing_and_other_rows_use_as_many_samples(samples, epochs, rows, more_rows, done):
    whole = counted(epochs, {"train": samples}, {"train": rows}).steps
    assert rows * (whole - 1) < of_samples(epochs, samples) <= rows * whole
    done = min(done, whole)
    assert counted(epochs, {"train": samples}, {"train": rows}, done=done, train=done * rows).steps == whole
    later = counted(epochs, {"train": samples}, {"train": more_rows}, done=done, train=done * rows).steps
    used = done * rows + (later - done) * more_rows
    assert used >= of_samples(epochs, samples) and (later == done or used - more_rows < of_samples(epochs, samples))
    begun_again = counted(epochs, {"train": samples}, {"train": rows}, done=done).steps
    assert begun_again == done + whole


@pytest.mark.parametrize(("epochs", "samples", "steps"), [(0.07, 10_000, 7), (1.1, 1000, 11), (0.29, 100, 1), (3, 100, 3)])
def test_a_share_of_an_epoch_is_not_rounded_up_by_float_errors(epochs, samples, steps):
    assert counted(epochs, {"train": samples}, {"train": 100}).steps == steps


def test_an_epoch_of_a_mix_is_all_its_samples():
    sources = {name: Counted(name, size, 0) for name, size in (("a", 10), ("b", 35))}
    assert Blend(sources, {"a": 3, "b": 1}, 0).epoch == 45
    sources["b"].epoch = None
    assert Blend(sources, {"a": 3, "b": 1}, 0).epoch is None


def test_what_cannot_be_counted_is_refused():
    pipe = {"chat": 100, "pipe": None}
    per_step = {"chat": 8, "pipe": 2}
    with refused("data.pipe", "schedule.epochs=0 schedule.steps=N", "schedule.epochs_of=chat."):
        counted(3, pipe, per_step)
    assert counted(3, pipe, per_step, of="chat").steps == 38
    with refused("schedule.epochs_of", "'chat'"):
        counted(3, pipe, per_step, of="chats")
    with refused("no objective reads a stream"):
        counted(3, {}, {})
    with refused("schedule.warmup_steps", "0..schedule.steps=12", "100 samples"):
        in_steps(ScheduleConfig(epochs=1, warmup_steps=13), counted(1, {"chat": 100}, {"chat": 9}))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs")
    write_model(folder / "model")
    write_data(folder / "shards", samples=32)
    return folder


def launched(home, world, *overrides: str) -> Trainer:
    recipe = write_recipe(home / "recipe.yaml", home, model=LORA)
    objectives = {"understanding": {"rows": 1}, "generation": {"caption_rows": 0, "pixel_rows": 2, "stream": "pictures"}}
    data = {name: {"shards": str(home / "shards"), "window": 2, "where": where} for name, where in DATA.items()}
    changes = [f"data={json.dumps(data)}", f"objectives={json.dumps(objectives)}"]
    schedule = {"epochs": 1.5, "kind": "linear", "warmup_steps": 1}
    return Trainer(load_recipe(str(recipe), [*changes, f"schedule={json.dumps(schedule)}", *overrides]), Mesh.of(world))


DATA = {"train": [], "pictures": ["has image"]}


def test_a_run_in_epochs(home, world):
    """Filters count, the plan says it, and a resumed run with other rows in a step goes on to as many samples."""
    output = f"output={home / 'runs' / 'epochs'}"
    trainer = launched(home, world, output, "batch.accumulation=2")
    pictures = sum(number % 5 != 0 for number in range(32))
    assert trainer.recipe.schedule == ScheduleConfig(steps=24, kind="linear", warmup_steps=1)
    assert "1.5 epochs of data.train (32 samples, 2 a step) = 24 steps, " in trainer.describe()
    (home / "written.yaml").write_text(as_yaml(trainer.recipe))
    assert load_recipe(str(home / "written.yaml"), []).schedule == trainer.recipe.schedule, "the record of the run is a recipe"
    assert trainer.streams["pictures"].source.epoch == pictures < 32
    other = launched(home, world, output, "schedule.epochs_of=pictures", "batch.accumulation=1")
    assert other.recipe.schedule.steps == math.ceil(1.5 * pictures / 2)
    batches = batches_of(trainer, 3)
    for _ in range(3):
        trainer.train_step(batches)
    trainer.saves.finish()
    resumed = launched(home, world, output, "batch.accumulation=2")
    assert (resumed.first_step, resumed.recipe.schedule.steps) == (3, 24)
    (trainer.folder / "recipe.yaml").write_text(as_yaml(trainer.recipe))
    again = launched(home, world, output, "batch.accumulation=2").parts.how_resumed()
    assert "changed" not in again, "the record has steps, the recipe epochs"
    assert (
        "(1 setting changed: schedule.steps 24 -> 32)"
        in launched(home, world, output, "batch.accumulation=2", "schedule.epochs=2").parts.how_resumed()
    )
    resumed = launched(home, world, output, "batch.accumulation=4")
    assert resumed.recipe.schedule.steps == 3 + math.ceil((48 - 6) / 4) == 14
