"""Rank program: ranks that share their rows, two to a row, against plain torch in one process, step by step.

python -m tests.multi_process.shared_rows HOME [CASE...]     (four ranks, or two; see tests/multi_process/launcher.py)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megaunigame.monitoring import names
from megaunigame.objectives.unigame.game import Game
from megaunigame.parallel.ranks import Ranks
from tests.multi_process import gradients, unigame
from tests.multi_process.programs import CHECKPOINTING, LORA, TWICE, batches_of, play, trained_weights, trainer_of

SHARED = {"engine": {"sequence_ranks": 2}}
PACKED = {"pack_tokens": 96}
CASES: dict[str, dict[str, Any]] = {
    "emu3_aia": {
        "model": {"family": "emu3", **CHECKPOINTING, **PACKED},
        "objectives": {**gradients.unimrg(source_gradient=0.1), "aia": gradients.LARGE_WEIGHTS},
        "batch": TWICE,
    },
    "emu3_5_lora": {"model": {"family": "emu3_5", **LORA, **PACKED}, "objectives": gradients.ROUND_ROBIN, "batch": TWICE},
    "janus_balance_independent_turns": {
        **gradients.BALANCE,
        "model": PACKED,
        "objectives": {**gradients.BALANCE["objectives"], **gradients.INDEPENDENT},
    },
    "openuni": {"model": {"family": "openuni", **PACKED}},
}
GAMES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "emu3_alternating": (unigame.GAP, {"model": {"family": "emu3", **PACKED}}),
    "simultaneous_checkpointing": ({"mode": "simultaneous"}, {"model": {**CHECKPOINTING, **PACKED}, "batch": TWICE}),
}


def run(case: str, given: Any, home: Path, world: Ranks) -> str:
    if case in GAMES:
        game, settings = given
        return unigame.run(f"shared_{case}", (game, settings | SHARED), home, world)
    return gradients.run(f"shared_{case}", given | SHARED, home, world)


def check_counted_once(home: Path, world: Ranks) -> str:
    """Rows, tokens and samples of ranks that share them count once; their buffers are the same, and one of them writes it."""
    game = {**unigame.GAME, "buffer": {"merge_every": 1, "capacity": 6, "percentile": 0}}
    settings = {"objectives": unigame.objectives(game, understanding={"rows": 2}), "model": PACKED}
    trainer = trainer_of("counted", home, world, **settings, **SHARED)
    [player] = [player for player in trainer.players if isinstance(player, Game)]
    data, sequence = trainer.mesh.data, trainer.mesh.sequence
    assert (data.size, data.rank, sequence.size, sequence.rank) == (world.size // 2, world.rank // 2, 2, world.rank % 2)
    batches = batches_of(trainer, 3)
    for number in range(3):
        metrics = trainer.train_step(batches)
        rows = trainer.plan.rows_per_micro_step() * data.size
        seconds = metrics[names.PERF_STEP_SECONDS]
        assert round(metrics[names.PERF_ROWS_PER_SECOND] * seconds) == rows
        assert metrics[names.rows("understanding", "wanted")] == 2 * data.size
        assert trainer.bad_samples.reads["train"] == (2 + 2 + 3) * data.size * (number + 1), trainer.bad_samples.reads
    buffer = player.pool.buffer
    own = (sorted(record.tobytes() for record in buffer.records(buffer.indices)), [p.tolist() for p in player.parameters])
    everywhere = world.all_gather_object(own)
    assert everywhere[0::2] == everywhere[1::2], "ranks that share their rows have different buffers or adversaries"
    files = [file.name for rank in world.all_gather_object(player.pending()) for file in rank]
    assert len(files) == len({*files}) == data.size + 1, files
    return f"{buffer.size} records on a rank, {len(files)} files"


def check_goes_on_alone(home: Path, world: Ranks) -> str:
    """A run goes on with another number of ranks to a row, with the same rows in a step, and an evaluation is the same."""
    suites = {"ask": {"suite": "questions", "shards": str(home / "shards"), "limit": 6, "questions_per_row": 1}}
    common = {
        "model": PACKED,
        "batch": {"accumulation": None, "global_rows": 5 * world.size},
        "checkpoint": {"every": 1},
        "evaluation": {"before": False, "suites": suites},
    }
    first = trainer_of("goes_on", home, world, **common, **SHARED)
    batches = batches_of(first, 1)
    first.train_step(batches)
    first.saves.finish()
    before = first.parts.evaluate(first.learner, lambda line: None)
    weights = trained_weights(first)
    second = trainer_of("goes_on", home, world, **common)
    assert second.first_step == 1 and second.accumulation * 2 == first.accumulation
    assert all((value == weights[name]).all() for name, value in trained_weights(second).items())
    after = second.parts.evaluate(second.learner, lambda line: None)
    for name, value in after["suites"]["ask"]["metrics"].items():
        assert abs(value - before["suites"]["ask"]["metrics"][name]) < 1e-4, (before, after)
    return "the same weights and answers"


CHECKS = {"counted_once": check_counted_once, "goes_on_alone": check_goes_on_alone}

if __name__ == "__main__":
    play(run, CASES | GAMES, CHECKS)
