"""Every family in the engine, in one process: every objective alone and all together, random weights, and an export."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from megaunigame.checkpoint.export import export_model
from megaunigame.checkpoint.runs import SavedRun, step_folder_of
from megaunigame.config import load_recipe
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring import names
from megaunigame.objectives.base import Objective
from megaunigame.parallel.mesh import Mesh
from megaunigame.registry import available, find
from megaunigame.training.trainer import Trainer
from tests.models.shared import FAMILIES
from tests.multi_process.programs import whole
from tests.multi_process.tiny_run import FOLDERS, write_data, write_edits, write_families, write_recipe
from tests.refusals import refused

STEPS = 3
ALONE: dict[str, dict[str, Any]] = {
    "understanding": {"rows": 2, "stream": "train"},
    "generation": {"caption_rows": 1, "pixel_rows": 1, "stream": "train"},
    "unimrg": {"rows": {"understanding": 1, "edges": 1, "pixel": 1}, "stream": "train"},
    "unigame": {
        **{"clean_rows": 1, "hard_rows": 1, "attack_rows": 2, "stream": "train", "pictures_every": 0},
        "adversary": {"kind": "perturber", "budget": "relative", "eps_max": 0.5, "hidden": 8},
        "buffer": {"merge_every": 1, "capacity": 8, "percentile": 0.0},
    },
    "aia": {"targets": "relative", "weights": {"generate": 5.0, "understand": 10.0}},
    "editing": {"rows": 2, "stream": "train", "sources": 3},
}
OF_OTHERS = {name: ALONE[name] for name in ("understanding", "generation")}
"""Rows for an objective that has none."""
TOGETHER = {
    "unigame": ALONE["unigame"],
    "unimrg": {**ALONE["unimrg"], "rows": {"edges": 1, "pixel": 1}},
    "generation": {**ALONE["generation"], "pixel_rows": 0},
    "aia": ALONE["aia"],
}
"""The rows of `understanding` are the game's clean ones."""
CASES = {name: {**(OF_OTHERS if name == "aia" else {}), name: settings} for name, settings in ALONE.items()}
CASES["together"] = TOGETHER
GAME = {"clean", "hard", "adversarial"}
MEASURED = {"aia_understand", "aia_generate"}
LOSSES = {
    "understanding": {"understanding"},
    "generation": {"caption", "pixel"},
    "unimrg": {"understanding", "edges", "pixel"},
    "unigame": GAME,
    "aia": {"understanding", "caption", "pixel", *MEASURED},
    "editing": {"edit"},
    "together": {"edges", "pixel", "caption", *GAME, *MEASURED},
}
RANDOM = {"path": "", "weights": "random", "size": "tiny", "max_length": 512}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = write_families(tmp_path_factory.mktemp("trains"))
    write_data(folder / "shards")
    write_edits(folder / "edits")
    return folder


def trainer_of(home, world, family: str, case: str, **settings) -> Trainer:
    model = {"family": family, **settings.pop("model", {})}
    recipe = write_recipe(home / "recipe.yaml", home, model=model, optimizer={"lr": 1e-3}, **settings)
    output = home / "runs" / family / case
    return Trainer(load_recipe(str(recipe), [f"objectives={json.dumps(CASES[case])}", f"output={output}"]), Mesh.of(world))


def trained(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """The metrics of the first steps."""
    trainer.dry_run()
    batches = iter(MicroBatchLoader(trainer.micro_batches, 0, steps * trainer.accumulation, 0))
    return [trainer.train_step(batches) for _ in range(steps)]


def check(metrics: list[dict[str, float]], losses: set[str]) -> None:
    """Of some steps: these losses are there, and all are finite."""
    found = [{name: value for name, value in step.items() if name.startswith(names.LOSS)} for step in metrics]
    assert {names.LOSS + name for name in losses} <= set().union(*found)
    assert all(math.isfinite(value) for step in found for value in step.values())
    assert all(0 < step[names.OPTIM_GRAD_NORM] < math.inf for step in metrics)


def test_every_objective_is_tried():
    assert set(ALONE) == set(available("objectives", Objective)) and set(CASES) == set(LOSSES)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps(home, world, family, case):
    """In bf16 on ZeRO-3: every loss of the objective is there, and all numbers are finite."""
    settings: dict[str, Any] = {"engine": {"precision": "bf16"}}
    if case == "editing":
        settings["data"] = {"train": {"shards": "edits", "window": 2}}
        if not find("models", family, UnifiedModel).interleaves:
            with refused("shows several source pictures in a row", f"{family!r} draws from one"):
                trainer_of(home, world, family, case, **settings)
            return
    trainer = trainer_of(home, world, family, case, **settings)
    check(trained(trainer, STEPS), LOSSES[case])


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_of_a_size(home, world, family, capsys):
    """Without a folder: those of the frozen tokenizer too. The attention is left to the run, which says what it takes."""
    trainer = trainer_of(home, world, family, "generation", model={**RANDOM, "attention": "auto"})
    assert (
        "attention: model.attention=auto takes sdpa (flash attention needs a GPU, and this run is on" in capsys.readouterr().out
    )
    check(trained(trainer, 1), {"total"})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_keeps_every_byte_of_what_was_not_trained(home, world, family, tmp_path):
    """Frozen weights and frozen tokenizers; the folder is read again, as the trained model."""
    kind, base = find("models", family, UnifiedModel), home / FOLDERS[family]
    trainer = trainer_of(home, world, family, "understanding", schedule={"steps": 1, "warmup_steps": 0})
    trained(trainer, 1)
    trainer.saves.finish()
    run = SavedRun(trainer.folder, trainer.recipe, step_folder_of(trainer.folder), base, "")
    export_model(kind, run, tmp_path, torch.float32)
    moved = set()
    for read in (kind.weights, kind.frozen_weights):
        before, after = read(str(base)), read(str(tmp_path))
        assert before.names() == after.names()
        pairs = {name: (before.read(name), after.read(name)) for name in before.names()}
        assert all(theirs.dtype == ours.dtype for theirs, ours in pairs.values())
        moved |= {name for name, (theirs, ours) in pairs.items() if not torch.equal(theirs, ours)}
    assert moved and {kind.group_of(name) for name in moved} <= set(kind.trained_by_default)
    ours = dict(kind.load(tmp_path, max_length=96).named_parameters())
    for name, weight in whole(dict(trainer.learner.module.named_parameters())).items():
        assert torch.equal(weight, ours[name]), name
