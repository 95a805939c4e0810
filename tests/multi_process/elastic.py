"""Program: a run that goes on with other numbers of ranks and other ZeRO stages equals one that was never stopped.

python -m tests.multi_process.elastic HOME [CASE...]
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from megaunigame.checkpoint.learner_files import pending_files
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.data.loading.stream import MicroBatch
from megaunigame.parallel.ranks import Ranks
from megaunigame.replay.files import saved_shape
from megaunigame.training.trainer import Trainer
from tests.multi_process.forked import in_world
from tests.multi_process.programs import LORA, PLAYED, ZERO2, ZERO2_OFFLOADED, trained_weights, trainer_of
from tests.multi_process.resume import losses

CHAIN = ((1, 2), (2, 4), (4, 6), (1, 8))
"""Ranks of each launch, and the step after which it stops."""
STEPS = 8
LEGAL = 1e-6
"""Largest difference of a weight, whose gradients are summed in another order."""
ZERO3_OFFLOADED = {"ds_config": "tests/multi_process/zero3_offload.json"}
PERSISTENT, HPZ = ({"ds_config": f"{{home}}/{name}.json"} for name in ("persistent", "hpz"))
ROWS = {"objectives": {"understanding": {"rows": 2}, "generation": {"caption_rows": 1, "pixel_rows": 2}}}
BATCH = {"batch": {"accumulation": None, "global_rows": 20}}
GAME = {
    "unigame": {
        **PLAYED,
        **{"clip": {"model": "tiny-random", "tau": 0.5}, "controller": {"flipped": 0.3}},
        "buffer": {"merge_every": 3, "capacity": 7, "temperature": 4.0},
    },
    "aia": {"preset": "auto", "targets": "relative", "calibration_steps": 5, "queries": 2},
}
CASES: dict[str, dict[str, Any]] = {
    "full": {
        **{**ROWS, **BATCH, "optimizer": {"group_lr": {"aligner": 0.3, "lm": 1.5}}, "ema": {"decay": 0.7}},
        "stages": [{}, HPZ, ZERO2, PERSISTENT],
    },
    "lora": {
        **{
            **ROWS,
            **BATCH,
            "model": LORA | {"pack_tokens": 192},
            "ema": {"decay": 0.7, "every": 3},
            "loader": {"balance": True},
        },
        "stages": [ZERO2, {}, ZERO2_OFFLOADED, ZERO3_OFFLOADED],
    },
    "game_bf16": {
        **{"objectives": GAME, "model": LORA, "engine": {"precision": "bf16"}},
        **{"batch": {"accumulation": None, "global_rows": 36}, "stages": [{}, ZERO2, {"precision": "fp32"}, {}]},
    },
}


class Watched(Trainer):
    """Stops after step `stop`; writes the keys of its rows down, by step, micro-step and rank."""

    last_step = STEPS

    def train_step(self, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
        self.seen: list[dict[str, list[str]]] = []
        if self.state.step == self.last_step - 1:
            self.stop.take(signal.SIGTERM, time.monotonic())
        metrics = super().train_step(self._noted(micro_batches))
        file = self.folder / "keys" / f"{self.state.step:02d}-{self.world.rank}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.seen))
        return metrics

    def _noted(self, micro_batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        for batch in micro_batches:
            requests = [r for r in batch.plan.requests if r.stream is not None and not r.aside]
            self.seen.append(
                {r.term: batch.inputs[r.pass_name].keys[batch.plan.rows_at(r.pass_name, r.term)] for r in requests}
            )
            yield batch


def keys(folder: Path, *, in_order: bool = True) -> dict[str, list[str]]:
    """Term -> keys of its rows over all steps and ranks: in the order of the stream, or of each step by themselves, sorted."""
    sequence: dict[str, list[str]] = {}
    files = sorted((folder / "keys").glob("*.json"))
    for step in range(1, STEPS + 1):
        ranks = [json.loads(file.read_text()) for file in files if file.name.startswith(f"{step:02d}-")]
        of_step: dict[str, list[str]] = {}
        for micro in zip(*ranks, strict=True):
            for of_rank in micro:
                for term, found in of_rank.items():
                    of_step.setdefault(term, []).extend(filter(None, found))
        for term, found in of_step.items():
            sequence.setdefault(term, []).extend(found if in_order else sorted(found))
    return sequence


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def launch(name: str, home: Path, world: Ranks, settings: dict[str, Any], engine: dict[str, Any], stop: int) -> Trainer:
    engine = {key: value.format(home=home) for key, value in engine.items()}
    settings = {**settings, "engine": {**settings.get("engine", {}), **engine}, "schedule": {"steps": STEPS}}
    trainer = trainer_of(name, home, world, Watched, checkpoint={"every": 100, "keep": 9}, **settings)
    trainer.last_step = stop
    return trainer


def check_loaded(trainer: Trainer) -> None:
    """Every weight of the model is the saved master in its dtype, and what is written again has the saved bits."""
    assert trainer.resumed_from is not None
    saved = SavedLearner(trainer.resumed_from)
    for name, weight in trained_weights(trainer).items():
        assert torch.equal(weight.cpu(), saved.whole(name).to(weight.dtype)), name
    again = trainer.folder / "again"
    again.mkdir(exist_ok=True)
    trainer.world.barrier()
    for file in pending_files(trainer.learner):
        file.write(again)
    trainer.world.barrier()
    if trainer.world.is_main:
        assert not differences(saved, SavedLearner(again), 0.0)
        shutil.rmtree(again)
    trainer.world.barrier()


def differences(ours: SavedLearner, theirs: SavedLearner, legal: float) -> list[str]:
    """Masters and moments that differ by more than `legal`, over the slices of all ranks."""
    assert (ours.updates, ours.kinds, set(ours.layouts)) == (theirs.updates, theirs.kinds, set(theirs.layouts))
    different = []
    for name, layout in ours.layouts.items():
        for kind in ours.kinds:
            pair = [torch.full((layout.numel,), torch.nan) for _ in range(2)]
            for saved, tensor in zip((ours, theirs), pair, strict=True):
                saved.read_into(tensor, kind, name, range(layout.numel))
            error = (pair[0] - pair[1]).abs().max().item()
            if not error <= legal:
                different.append(f"{kind}/{name}: {error:.2e}")
    return different


def run(case: str, home: Path) -> str:
    settings = dict(CASES[case])
    stages, playing = settings.pop("stages"), "unigame" in settings.get("objectives", {})
    chain, whole = home / "runs" / f"{case}-chain", home / "runs" / f"{case}-whole"
    dealt = "loader" in settings

    def uninterrupted(world: Ranks) -> None:
        launch(f"{case}-whole", home, world, settings | {"loader": {}}, stages[0], STEPS).fit()  # rows are not dealt

    def from_nothing(world: Ranks) -> None:
        launch(f"{case}-chain", home, world, settings, stages[0], 0).saves.finish()

    if not playing:
        in_world(1, uninterrupted)
        if case == "lora":
            in_world(2, from_nothing)  # before the first update there are no moments
    for (ranks, stop), engine in zip(CHAIN, stages, strict=True):

        def go_on(world: Ranks, stop: int = stop, engine: dict[str, Any] = engine) -> None:
            trainer = launch(f"{case}-chain", home, world, settings, engine, stop)
            assert (trainer.resumed_from is None) == (case != "lora" and stop == CHAIN[0][1])
            if trainer.resumed_from is not None:
                check_loaded(trainer)
                if playing:
                    check_players(trainer)
            trainer.fit()
            assert trainer.state.step == stop

        in_world(ranks, go_on)
    if playing:
        return "players go on"
    assert keys(chain, in_order=not dealt) == keys(whole, in_order=not dealt) and len(keys(whole)["understanding"]) == STEPS * 8
    worst = differences(SavedLearner(step_folder(chain, STEPS)), SavedLearner(step_folder(whole, STEPS)), LEGAL)
    assert not worst, worst
    for ours, theirs in zip(losses(chain), losses(whole), strict=True):
        assert ours.keys() == theirs.keys() and all(abs(ours[name] - theirs[name]) < 1e-4 for name in ours), (ours, theirs)
    return "same samples, same weights"


def check_players(trainer: Trainer) -> None:
    """What players have after loading is what was saved, at any number of ranks."""
    folder, game = trainer.resumed_from, next(player for player in trainer.players if hasattr(player, "pool"))
    again = trainer.folder / "players"
    if trainer.world.is_main:
        again.mkdir()
    trainer.world.barrier()
    for file in (file for player in trainer.players for file in player.pending()):
        file.write(again)
    trainer.world.barrier()
    buffer = game.pool.buffer
    records = trainer.world.all_gather_object(sorted(record.tobytes() for record in buffer.records(buffer.indices)))
    if trainer.world.is_main:
        for file in (
            f for f in folder.iterdir() if not f.name.startswith(("learner", "hard_buffer", "train_state", "manifest"))
        ):
            assert file.read_bytes() == (again / file.name).read_bytes(), file.name
        files = sorted(folder.glob("hard_buffer-rank-*"))
        assert saved_shape(folder).world_size == len(files)
        assert sorted(sum(records, [])) == saved_records(files, buffer.layout.dtype)
        shutil.rmtree(again)
    trainer.world.barrier()


def saved_records(files: list[Path], dtype: Any) -> list[bytes]:
    """Records of the saved buffers that are not spent."""
    rows = [load_file(file)["records"] for file in files]
    records = [row.tobytes() for part in rows for row in part.view(dtype)[:, 0] if not row["spent"]]
    return sorted(records)


def reset_data(home: Path) -> str:
    """Weights, optimizer and counters go on, data streams begin again, once; other data are legal then."""
    settings = {**ROWS, **BATCH, "model": LORA}
    run_folder = home / "runs" / "reset"

    def first(world: Ranks) -> None:
        launch("reset", home, world, settings, {}, 2).fit()

    def other(world: Ranks) -> None:
        data = {"train": {"shards": str(home / "pictures"), "window": 2}}
        trainer = trainer_of(
            "reset",
            home,
            world,
            Watched,
            **settings,
            data=data,
            optimizer={"group_lr": {"lora": 0.5}},
            schedule={"steps": STEPS},
            checkpoint={"every": 100, "keep": 9, "reset_data": True},
        )
        fresh = trainer.first_step == 2
        assert trainer.state.cursors == {} if fresh else trainer.state.cursors["train"].position == 20
        said = "begin again" if fresh else "done by an earlier launch"
        assert said in trainer.parts.how_resumed(), trainer.parts.how_resumed()
        check_loaded(trainer)
        trainer.last_step = trainer.first_step + 1
        trainer.fit()
        assert trainer.state.step == trainer.last_step and trainer.state.cursors["train"].position == 20 * (
            trainer.last_step - 2
        )

    in_world(1, first)
    in_world(2, other)
    in_world(1, other)
    assert SavedLearner(step_folder(run_folder, 4)).updates == 4
    return "begins again once"


def main() -> None:
    home = Path(sys.argv[1])
    plain = json.loads(Path("ds_configs/zero3_cpu.json").read_text())["zero_optimization"]
    # Vectors that are whole on every rank, several flat tensors; second copies inside a node.
    for name, more in (
        ("persistent", {"stage3_param_persistence_threshold": 300, "sub_group_size": 2000}),
        ("hpz", {"zero_hpz_partition_size": 2}),
    ):
        (home / f"{name}.json").write_text(json.dumps({"zero_optimization": {**plain, **more}}))
    for name in sys.argv[2:] or [*CASES, "reset_data"]:
        print(f"{name}: {reset_data(home) if name == 'reset_data' else run(name, home)}", flush=True)


if __name__ == "__main__":
    main()
