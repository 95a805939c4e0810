"""Rank program: a run resumed after 3 of 7 steps equals one that was never stopped, bit for bit.

And evaluation in between changes nothing.

python -m tests.multi_process.resume HOME [CASE...]
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.config import AUTO, EACH_CALL, ONCE, TENSOR_PARALLEL
from megaunigame.engine.tensor_parallel import divided_bytes
from megaunigame.engine.whole_weights import free_bytes, whole_bytes, whole_weights
from megaunigame.errors import ConfigError, Interrupted
from megaunigame.evaluation.run import evaluation_file, run_evaluation
from megaunigame.monitoring import names
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks
from megaunigame.training.gathering import SuiteWeights
from megaunigame.training.trainer import Trainer
from tests.multi_process.programs import PLAYED, TWICE, ZERO2, batches_of, play, trained_weights, trainer_of

STEPS, STOP = 7, 3
LAST, SAVED = f"checkpoints/step-{STEPS:08d}", f"checkpoints/step-{STOP:08d}"
EMA = {"decay": 0.6}
KEEPS_SOME = {"ds_config": "tests/multi_process/zero3_persistent.json"}
"""Small weights are never partitioned between passes."""
STOPPED = ("lora_bf16", "unigame_alternating_aia")
"""Cases that are stopped there; the others resume from what the uninterrupted run saved in passing."""
LORA = {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}
# The stop lies between two merges: mined candidates must come back too, not only the buffer.
GAME = {
    **PLAYED,
    "clip": {"model": "tiny-random", "tau": 0.5},
    "buffer": {"merge_every": 2, "capacity": 7, "temperature": 4.0, "max_age": 4},
    "pictures_every": 2,
}
CONTROLLED = {"controller": {"flipped": 0.3}, "buffer": {**GAME["buffer"], "hardness": "gap", "draw": "keep"}}
CASES: dict[str, dict[str, Any]] = {
    # 10 to 30 rows a step of 64 samples: the stop is in the middle of an epoch, and later steps cross into the next.
    "lora_bf16": {
        "model": LORA | {"pack_tokens": 96},
        "engine": {"precision": "bf16"},
        "loader": {"workers": 2, "balance": True},
        "batch": {"accumulation": 3},
        "ema": {"decay": 0.6, "every": 2},
    },
    "full_fp32": {"loader": {"workers": 1}, "optimizer": {"group_lr": {"aligner": 0.3}}},
    "full_bf16_accumulated": {"engine": {"precision": "bf16"}, "batch": TWICE},
    # The stop lies amid the steps in which the weights of AIA are measured.
    "unigame_alternating_aia": {
        "objectives": {
            "unigame": {**GAME, **CONTROLLED},
            "aia": {"preset": "auto", "targets": "relative", "calibration_steps": 5, "queries": 2},
        },
        "model": LORA | {"pack_tokens": 96},
        "loader": {"workers": 1, "balance": True},
        "batch": TWICE,
    },
    "unigame_simultaneous_bf16": {
        "objectives": {"unigame": {**GAME, "mode": "simultaneous", "every": 2}},
        "model": LORA,
        "engine": {"precision": "bf16"},
    },
    "zero2_bf16": {"engine": {"precision": "bf16", **ZERO2}, "ema": {"decay": 0.9}},
    # Measured in steps 0, 2, 4, 6: the factor of the stop depends on all of them.
    "balance_bf16": {
        "weights": {
            "pixel": {"kind": "auto", "like": "understanding"},
            "caption": {"start": 0.0, "steps": 5, "kind": "cosine"},
        },
        "monitor": {"gradients": 2},
        "engine": {"precision": "bf16"},
    },
}


class StopsAfter(Trainer):
    """One of its ranks is told to stop, as SIGTERM tells it, at the end of step STOP - 1: step STOP is the last for all.

    At the end, not within: there the rank that knows must still go on, because the other has agreed to nothing yet.
    """

    def train_step(self, micro_batches):
        metrics = super().train_step(micro_batches)
        if self.state.step == STOP - 1 and self.world.rank == 1:
            self.stop.take(signal.SIGTERM, time.monotonic())
        return metrics


def fitted(name: str, home: Path, world: Ranks, kind: type[Trainer] = Trainer, **settings: Any) -> Trainer:
    trainer = trainer_of(name, home, world, kind, **settings)
    trainer.fit()
    return trainer


def run(case: str, settings: dict[str, Any], home: Path, world: Ranks) -> str:
    settings = {**settings, "schedule": {"steps": STEPS}, "checkpoint": {"every": STOP, "keep": 9}}
    whole = fitted(f"{case}-whole", home, world, **settings)
    parts = home / "runs" / f"{case}-parts"
    if case in STOPPED:
        stopped = fitted(parts.name, home, world, StopsAfter, **settings)
        assert stopped.state.step == STOP, "one rank asked to stop; all must have"
    elif world.is_main:
        shutil.copytree(whole.folder / SAVED, parts / SAVED)
        (parts / "checkpoints" / "latest").write_text(Path(SAVED).name)
    world.barrier()
    resumed = fitted(parts.name, home, world, **settings)
    assert resumed.first_step == STOP and resumed.state == whole.state

    assert not checkpoint_differences(whole, resumed), case
    if settings.get("model") == LORA:
        saved = SavedLearner(whole.folder / LAST)
        assert saved.layouts and all("lora_" in name for name in saved.layouts), "base weights were saved"
    if world.is_main:
        ours, theirs = (losses(t.folder) for t in (whole, resumed))
        steps = STEPS if case in STOPPED else STEPS - STOP
        assert ours[-steps:] == theirs and len(theirs) == steps, (case, ours, theirs)
    size = sum(f.stat().st_size for f in (whole.folder / LAST).iterdir())
    return f"equal to the last bit; checkpoint {size / 1024:.0f} KiB"


def checkpoint_differences(ours: Trainer, theirs: Trainer) -> list[str]:
    """Files of the last checkpoints of two runs that differ: masters, moments, and what players keep, of every rank.

    Of manifest.json, all but the number of the save and its own hash: a run that was stopped has saved more often.
    """
    names = [sorted(file.name for file in (trainer.folder / LAST).iterdir()) for trainer in (ours, theirs)]
    assert names[0] == names[1] and sum(name.startswith("learner-rank") for name in names[0]) == ours.world.size
    return [name for name in names[0] if _content(ours.folder / LAST / name) != _content(theirs.folder / LAST / name)]


def _content(file: Path) -> Any:
    if file.name != "manifest.json":
        return file.read_bytes()
    return {name: value for name, value in json.loads(file.read_bytes()).items() if name not in ("saves", "sha256")}


def check_evaluation_changes_nothing(home: Path, world: Ranks) -> str:
    """All suites run before, during and after; they sample pictures, and still the run ends with the same bits."""
    shards = {"shards": str(home / "pictures"), "limit": 5, "batch": 2}
    asked = {**shards, "questions_per_row": 2}
    suites = {"questions": asked, "reconstruction_questions": asked, "generation": shards, "teacher_forced": shards}
    suites["tokenizer"] = {**shards, "representations": ["pixel"]}
    settings = {"schedule": {"steps": STEPS}, "model": LORA}
    plain = fitted("plain", home, world, evaluation={"suites": {}}, **settings)
    evaluated = fitted("evaluated", home, world, evaluation={"suites": suites, "every": 3}, **settings)
    assert not checkpoint_differences(plain, evaluated)
    if world.is_main:
        results = sorted((home / "runs" / "evaluated" / "evaluation").glob("step-*.json"))
        assert [r.stem for r in results] == [f"step-{n:08d}" for n in (0, 3, 6, 7)]
    return "changes nothing"


def check_weights_gathered_once(home: Path, world: Ranks) -> str:
    """Suites on weights that stay whole say and draw the same as suites that gather in every call, and the steps between them
    gather what they gathered before, and are trained on what is drawn from next."""
    shards = {"shards": str(home / "pictures"), "limit": 5, "batch": 2}
    suites = {"questions": {**shards, "questions_per_row": 2}, "generation": {**shards, "guidance": 3.0, "pictures": 5}}
    drawn: dict[str, list[dict[str, bytes]]] = {}
    gathered: dict[str, list[int]] = {}
    cost: dict[str, str] = {}
    trained: list[dict[str, Tensor]] = []
    for gather in (EACH_CALL, ONCE):
        evaluation = {"suites": suites, "gather": gather}
        trainer = trainer_of(f"gather-{gather}", home, world, evaluation=evaluation, ema=EMA, engine=KEEPS_SOME)
        batches, learner = batches_of(trainer, STEPS), trainer.learner
        steps = [trainer.train_step(batches)[names.PERF_ALLGATHER_BYTES] for _ in range(STOP)]
        drawn[gather] = []
        for _ in range(2):
            learner.gathered.pop()
            began, calls = time.perf_counter(), _collectives()
            trainer.parts.evaluate(learner, lambda line: None)
            cost[gather] = f"{_collectives() - calls} collectives, {time.perf_counter() - began:.2f} s"
            gathered.setdefault(gather, []).append(learner.gathered.pop())
            steps.append(trainer.train_step(batches)[names.PERF_ALLGATHER_BYTES])
            drawn[gather].append(_evaluated(trainer.folder, trainer.state.step - 1))
        assert gather == EACH_CALL or len(set(steps[2:])) == 1, steps
        whole = whole_bytes(learner)
        _check_budget(trainer, is_once=gather == ONCE)
        if gather == ONCE:
            divided = _check_tensor_parallel(trainer)
        steps.append(trainer.train_step(batches)[names.PERF_ALLGATHER_BYTES])
        trained.append(trained_weights(trainer))
    world.barrier()
    assert drawn[ONCE] == drawn[EACH_CALL]
    if world.is_main:
        assert len(drawn[ONCE][0]) > 5 and drawn[ONCE][0] != drawn[ONCE][1], "the weights of the first evaluation were kept"
    assert gathered[ONCE] == [whole, whole] and 5 * whole < min(gathered[EACH_CALL]), (whole, gathered)
    assert steps[-1] == steps[-2]
    assert all(torch.equal(trained[0][name], weight) for name, weight in trained[1].items())
    return f"in every call {cost[EACH_CALL]}; once {cost[ONCE]}; divided {divided}"


def _check_tensor_parallel(trainer: Trainer) -> str:
    """Two ranks that divide the weights draw, together, what one data rank draws with whole weights."""
    parts, learner, step = trainer.parts, trainer.learner, trainer.state.step
    parts.suites = {label: suite for label, suite in parts.suites.items() if label == "generation"}
    with whole_weights(learner):
        one = Mesh.of(trainer.world, 2).data
        run_evaluation(learner.module, parts.suites, one, step, trainer.folder / "whole")
    _choose(trainer, TENSOR_PARALLEL)
    said: list[str] = []
    parts.check_drawing(learner, said.append)
    assert "takes 12 calls of 2 ranks together" in said[0], said
    points = iter([False, True])

    def leave() -> None:
        if next(points):
            raise Interrupted

    with pytest.raises(Interrupted):
        parts.evaluate(learner, lambda line: None, leave)
    began, calls = time.perf_counter(), _collectives()
    parts.evaluate(learner, lambda line: None)
    cost = f"{_collectives() - calls} collectives of all ranks, {time.perf_counter() - began:.2f} s"
    if trainer.world.is_main:
        drawn = _evaluated(trainer.folder, step)
        assert drawn == _evaluated(trainer.folder / "whole", step) and len(drawn) > 5, list(drawn)
    return cost


def _check_budget(trainer: Trainer, *, is_once: bool) -> None:
    """Two batches of pictures on each rank; 4 codes of a picture are 4 calls."""
    said: list[str] = []
    trainer.parts.recipe.evaluation.most_drawing_hours = 1e-9
    with contextlib.nullcontext() if is_once else pytest.raises(ConfigError, match="evaluation.most_drawing_hours=1e-09, but"):
        trainer.parts.check_drawing(trainer.learner, said.append)
    assert len(said) == (not is_once) and all("takes 8 calls of each rank" in line for line in said), said
    whole, free = whole_bytes(trainer.learner), free_bytes(trainer.learner)
    shares = (0.0, EACH_CALL), ((whole + divided_bytes(trainer.learner, 2)) / 2 / free, TENSOR_PARALLEL), (1.0, ONCE)
    for share, way in shares:
        trainer.parts.recipe.evaluation.gather_share = share
        _choose(trainer, AUTO)
        assert trainer.parts.suite_weights.way(trainer.learner) == way
    trainer.parts.recipe.evaluation.most_drawing_hours = 0


def _choose(trainer: Trainer, gather: str) -> None:
    """As a launch does that is given this way."""
    settings = trainer.parts.recipe.evaluation
    settings.gather = gather
    trainer.parts.suite_weights = SuiteWeights(settings, trainer.mesh, 1.0)


def _collectives() -> int:
    """Of this rank so far."""
    return dist.group.WORLD._get_sequence_number_for_group()


def _evaluated(folder: Path, step: int) -> dict[str, bytes]:
    """What rank 0 has written of an evaluation, without its seconds."""
    file = evaluation_file(folder, step)
    if not file.exists():
        return {}
    pictures = {picture.name: picture.read_bytes() for picture in file.with_suffix("").rglob("*.png")}
    return pictures | {file.name: re.sub(rb'"seconds": [0-9.]+', b"", file.read_bytes())}


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = (names.LOSS, "adversary/", "buffer/", names.OPTIM_GRAD_NORM)
    return [{k: v for k, v in line.items() if k.startswith(kept)} for line in lines]


if __name__ == "__main__":
    play(run, CASES, {"evaluation": check_evaluation_changes_nothing, "gathered once": check_weights_gathered_once})
