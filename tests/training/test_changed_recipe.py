"""A run whose recipe changes between two launches: what goes on, what is said, what is refused."""

from __future__ import annotations

import json

import pytest

from megaunigame.config import load_recipe
from megaunigame.errors import CheckpointError
from megaunigame.parallel.mesh import Mesh
from megaunigame.training.trainer import Trainer
from tests.checkpoint.altered import change_state
from tests.multi_process.programs import LORA, batches_of
from tests.multi_process.tiny_run import write_data, write_model, write_recipe

ROWS = {"understanding": {"rows": 1}}
BOTH = {**ROWS, "generation": {"caption_rows": 1, "pixel_rows": 1, "stream": "other"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed")
    write_model(folder / "model")
    write_data(folder / "shards")
    write_data(folder / "others", samples=32)
    return folder


def data_of(home, **folders: str) -> dict[str, dict]:
    return {name: {"shards": str(home / folder), "window": 2} for name, folder in folders.items()}


def launched(home, world, name: str, objectives, data=None, **settings) -> Trainer:
    """One launch that makes one step and saves it."""
    recipe = write_recipe(home / "recipe.yaml", home, model=LORA, schedule={"steps": 9}, **settings)
    data = data or data_of(home, train="shards")
    changed = [f"objectives={json.dumps(objectives)}", f"data={json.dumps(data)}", f"output={home / 'runs' / name}"]
    trainer = Trainer(load_recipe(str(recipe), changed), Mesh.of(world))
    trainer.train_step(batches_of(trainer, 1))
    trainer.saves.finish()
    return trainer


def positions(trainer: Trainer) -> dict[str, int]:
    return {name: cursor.position for name, cursor in trainer.state.cursors.items()}


def test_a_stream_that_rests_keeps_its_place(home, world):
    data = data_of(home, train="shards", other="others")
    assert positions(launched(home, world, "rests", objectives=BOTH, data=data)) == {"train": 1, "other": 2}
    resting = launched(home, world, "rests", objectives=ROWS, data=data)
    assert positions(resting) == {"train": 2, "other": 2}
    assert "; stream other rests at sample 2" in resting.parts.how_resumed()
    again = launched(home, world, "rests", objectives=BOTH, data=data)
    assert positions(again) == {"train": 3, "other": 4}
    assert "stream" not in again.parts.how_resumed()


def test_a_new_stream_is_told_of(home, world):
    launched(home, world, "new", objectives=ROWS, data=data_of(home, train="shards"))
    more = launched(home, world, "new", objectives=BOTH, data=data_of(home, train="shards", other="others"))
    assert more.parts.how_resumed().endswith("; stream other begins at its first sample")
    assert positions(more) == {"train": 2, "other": 2}


@pytest.mark.fault(
    "a stream of the recipe only has another name after a resume",
    does="refuses, naming both names",
    lost="nothing: the samples it has seen do not come again",
)
def test_a_stream_with_another_name_is_refused(home, world):
    launched(home, world, "renamed", objectives=ROWS, data=data_of(home, train="shards"))
    renamed = {"objectives": {"understanding": {"rows": 1, "stream": "main"}}, "data": data_of(home, main="shards")}
    with pytest.raises(CheckpointError, match="'train' at sample 1, .* new stream 'main' has the same data") as caught:
        launched(home, world, "renamed", **renamed)
    assert "data.train" in str(caught.value) and "checkpoint.reset_data=true" in str(caught.value)
    again = launched(home, world, "renamed", **renamed, checkpoint={"every": 100, "reset_data": True})
    assert positions(again) == {"main": 1}


GAME = {
    **{"clean_rows": 1, "hard_rows": 1, "attack_rows": 1, "pictures_every": 0},
    "adversary": {"kind": "perturber", "budget": "relative", "eps_max": 0.5, "hidden": 8},
    "buffer": {"merge_every": 1, "capacity": 8, "percentile": 0.0},
}


@pytest.mark.fault(
    "an objective that keeps state is left out on a resume",
    does="refuses: the next saves would be without its state, and replace those with it",
    lost="nothing",
)
def test_an_objective_with_state_is_not_lost(home, world):
    played = {**ROWS, "unigame": GAME}
    first = launched(home, world, "played", played)
    assert first.state.players == ["unigame"]
    with pytest.raises(
        CheckpointError, match="has the state of objectives.unigame, for which this recipe has no use"
    ) as caught:
        launched(home, world, "played", ROWS)
    step = first.folder / "checkpoints" / "step-00000001"
    assert f"type output=ANOTHER checkpoint.resume={step}." in str(caught.value)
    with pytest.raises(CheckpointError, match=r"state of objectives\.unigame"):
        launched(home, world, "played", {**ROWS, "unigame": {**GAME, "attack_rows": 0, "hard_rows": 0}})
    without = launched(home, world, "without", ROWS, checkpoint={"every": 100, "resume": str(step)})
    assert without.state.step == 2 and without.state.players == []
    with pytest.raises(CheckpointError, match="the launch that saved it had no attacks"):
        launched(home, world, "without", played)
    change_state(step, players=[])  # of an older version: not known
    attention = {"targets": "relative"}
    assert launched(home, world, "played", {**ROWS, "aia": attention}).state.players == [], "its weights are in the recipe"
    assert launched(home, world, "measured", {**ROWS, "aia": {**attention, "preset": "auto"}}).state.players == ["aia"]
