"""Rank program: ranks that share their rows, two to a row, against plain torch in one process, step by step.

python -m tests.multi_process.shared_rows HOME [CASE...]     (four ranks, or two; see tests/multi_process/launcher.py)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megaunigame.models.causal.model import CausalModel
from megaunigame.monitoring import names
from megaunigame.objectives.unigame.game import Game
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks
from megaunigame.registry import find
from megaunigame.step.inputs import GenerateOutput, PassInputs, Taps
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand
from tests.multi_process import gradients, unigame
from tests.multi_process.programs import CHECKPOINTING, LORA, TWICE, batches_of, play, trained_weights, trainer_of
from tests.multi_process.tiny_run import FOLDERS

SHARED = {"engine": {"sequence_ranks": 2}}
PACKED = {"pack_tokens": 700}
ONE_A_ROW = {"questions_per_row": 1}
CASES: dict[str, dict[str, Any]] = {
    "emu3_aia": {
        "model": {"family": "emu3", **CHECKPOINTING, **PACKED},
        "objectives": {**gradients.unimrg(source_gradient=0.1), "aia": gradients.LARGE_WEIGHTS},
        "batch": TWICE,
    },
    "janus_balance_independent_turns": {
        **gradients.BALANCE,
        "model": PACKED,
        "objectives": {**gradients.BALANCE["objectives"], **gradients.INDEPENDENT},
    },
}
GAMES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "emu3_alternating": (unigame.GAP, {"model": {"family": "emu3", **PACKED}}),
    "simultaneous_lora_checkpointing": ({"mode": "simultaneous"}, {"model": LORA | CHECKPOINTING | PACKED}),
}


def run(case: str, given: Any, home: Path, world: Ranks) -> str:
    if case in GAMES:
        game, settings = given
        return unigame.run(f"shared_{case}", (game, settings | SHARED), home, world)
    return gradients.run(f"shared_{case}", given | SHARED, home, world)


def check_counted_once(home: Path, world: Ranks) -> str:
    """Rows and samples of ranks that share them count once; their buffers are the same, and one of them writes it.

    The run goes on with one rank to a row: the same weights, pictures in the buffers and answers.
    """
    game = {**unigame.GAME, "buffer": {"merge_every": 1, "capacity": 6, "percentile": 0}, "pictures_every": 0}
    settings = {
        "objectives": unigame.objectives(game, understanding={"rows": 2}),
        "model": PACKED,
        "batch": {"accumulation": None, "global_rows": 6 * world.size},
        "evaluation": {"suites": {"ask": {"suite": "questions", "shards": str(home / "shards"), "limit": 6, **ONE_A_ROW}}},
    }
    shared = trainer_of("counted", home, world, **settings, **SHARED)
    data, sequence = shared.mesh.data, shared.mesh.sequence
    assert (data.size, data.rank, sequence.size, sequence.rank) == (world.size // 2, world.rank // 2, 2, world.rank % 2)
    batches = batches_of(shared, 2)
    for number in range(2):
        metrics = shared.train_step(batches)
        rows = round(metrics[names.PERF_ROWS_PER_SECOND] * metrics[names.PERF_STEP_SECONDS])
        assert rows == shared.recipe.batch.global_rows == 6 * data.size * shared.accumulation
        assert metrics[names.rows("understanding", "wanted")] == 2 * data.size * shared.accumulation
        assert shared.bad_samples.reads["train"] == (2 + 2 + 3) * data.size * shared.accumulation * (number + 1)
    [player] = [player for player in shared.players if isinstance(player, Game)]
    everywhere = world.all_gather_object((held(player), [p.tolist() for p in player.parameters]))
    assert everywhere[0::2] == everywhere[1::2], "ranks that share their rows have different buffers or adversaries"
    files = [file.name for rank in world.all_gather_object(player.pending()) for file in rank]
    assert len(files) == len({*files}) == data.size + 1, files
    shared.saves.finish()
    answers = shared.parts.evaluate(shared.learner, lambda line: None)["suites"]["ask"]["metrics"]
    weights = trained_weights(shared)
    alone = trainer_of("counted", home, world, **settings)
    assert alone.first_step == 2 and 2 * alone.accumulation == shared.accumulation
    assert all(torch.equal(value, weights[name]) for name, value in trained_weights(alone).items())
    [player] = [player for player in alone.players if isinstance(player, Game)]
    ours = sorted(record for rank in world.all_gather_object(held(player)) for record in rank)
    assert ours == sorted(record for of_buffer, _ in everywhere[0::2] for record in of_buffer) and ours
    found = alone.parts.evaluate(alone.learner, lambda line: None)["suites"]["ask"]["metrics"]
    assert found == pytest.approx(answers, abs=1e-4)
    return f"{len(ours)} records in {data.size} files, then in {world.size} buffers"


def held(player: Game) -> list[bytes]:
    """The records of this rank's buffer that are not spent."""
    buffer = player.pool.buffer
    return sorted(record.tobytes() for record in buffer.records(buffer.indices))


def check_families(home: Path, world: Ranks) -> str:
    """Of every family that divides rows: losses, attention, hidden states and gradients of both passes."""
    rng, mesh = torch.Generator().manual_seed(3), Mesh.of(world, 2)
    pictures = [torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=rng) for _ in range(3)]
    turns = [("what is it ?", "a ball"), ("is it large ?", "no")]
    asked = [UnderstandRow(pictures[:1], turns, independent=True), None, UnderstandRow(pictures, turns[:1])]
    drawn = [GenerateRow("a ball", pictures[0]), GenerateRow("dark red or blue", pictures[1], pictures[2]), None]
    compared = []
    for name, folder in FOLDERS.items():
        family = find("models", name, CausalModel)
        if not family.divides_rows:
            continue
        family.check_sequence_ranks(str(home / folder), 2)
        alone, together = (family.load(home / folder, max_length=96).train() for _ in range(2))
        for model in (alone, together):
            model.pack_rows(PACKED["pack_tokens"])
            model.install_taps()
        together.share_sequence(mesh.sequence)
        for inputs in (understand(alone, *asked), generate(alone, *drawn)):
            wanted, gradient = measured(alone, inputs)
            found, own = measured(together, inputs)
            # Each rank has the loss of all rows, so the gradients of the two are twice that of one.
            ours = mesh.sequence.all_reduce_sum(own) / 2
            for ours_of, wanted_of in [*zip(found, wanted, strict=True), (ours, gradient)]:
                off = ((ours_of - wanted_of).norm() / wanted_of.norm()).item()
                assert off < 3e-5, (name, inputs.pass_name, off)
        compared.append(name)
    return ", ".join(compared)


def measured(model: CausalModel, inputs: PassInputs) -> tuple[list[Tensor], Tensor]:
    """What a pass gives, and its gradient with respect to all weights in one vector."""
    torch.manual_seed(0)
    model.zero_grad()
    output = model(dataclasses.replace(inputs, taps=Taps(tuple(range(len(model.layers()))), queries=3)))
    shares = torch.where(inputs.counts > 0, output.attention.keys, 0.0)
    weights = torch.arange(1.0, len(inputs.tokens) + 1)
    ((weights * output.loss_sum).sum() + (weights * shares).sum()).backward()
    gradient = torch.cat([p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    hidden = [output.hidden] if isinstance(output, GenerateOutput) else []
    return [each.detach() for each in (output.loss_sum, shares, *hidden)], gradient


CHECKS = {"families": check_families, "counted_once": check_counted_once}

if __name__ == "__main__":
    play(run, CASES | GAMES, CHECKS)
