"""Rank program: steps whose update is refused, on ZeRO-2 and ZeRO-3, against plain torch that never makes that update.

python -m tests.multi_process.diverging HOME [CASE...]     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megaunigame.config import as_yaml
from megaunigame.errors import DivergenceError
from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.requests import UNDERSTAND
from megaunigame.training import kept_rows
from megaunigame.training.trainer import Trainer
from tests.multi_process.gradients import TOLERANCE, unimrg
from tests.multi_process.mixed import MASTER_BOUND, masters
from tests.multi_process.mixed_reference import MixedReference
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.programs import (
    LORA,
    PLAYED,
    TWICE,
    ZERO2,
    ZERO2_OFFLOADED,
    batches_of,
    largest_error,
    play,
    trained_weights,
    trainer_of,
)

BROKEN, STEPS = 1, 5
"""Number of the step that breaks (0 is the first), and steps in all: three follow."""
BF16 = {"precision": "bf16"}
LOSS, GRADIENT, SPIKE, ZERO = "loss", "gradient", "spike", "zero"
OFFLOADED = {"ds_config": "tests/multi_process/zero3_offload.json"}
PERSISTENT = {"ds_config": "tests/multi_process/zero3_persistent.json"}
FINITE, OVERFLOWED = "left-finite", "left-overflowed"
LEFT: dict[str, dict[str, Any]] = {
    FINITE: {"model": LORA, "batch": TWICE},
    OVERFLOWED: {"optimizer": {"lr": 1e30, "clip": 1e30}, "schedule": {"warmup_steps": 0, "kind": "constant"}, "engine": ZERO2},
}
"""Runs that `check_left` leaves."""
ROUND_ROBIN = {"understanding": {"rows": 0}, "generation": {"caption_rows": 0}, **unimrg(schedule="round_robin")}
CASES: dict[str, dict[str, Any]] = {
    "loss_zero3": {"batch": TWICE},
    "loss_zero2": {"engine": ZERO2, "batch": TWICE},
    "gradient_zero3_persistent": {"engine": PERSISTENT, "model": LORA},
    "gradient_zero2": {"engine": ZERO2},
    "spike_zero3": {"divergence": {"on_spike": "skip", "spike": 50.0, "window": 2, "skip": 1}},
    "gradient_zero3_offloaded_round_robin": {"engine": OFFLOADED, "objectives": ROUND_ROBIN},
    "loss_zero2_offloaded": {"engine": ZERO2_OFFLOADED, "batch": TWICE},
    "loss_zero3_bf16": {"engine": BF16, "batch": TWICE},
    "gradient_zero2_bf16": {"engine": {**BF16, **ZERO2}},
    "spike_zero2_bf16": {
        "engine": {**BF16, **ZERO2},
        "divergence": {"on_spike": "skip", "spike": 50.0, "window": 2, "skip": 1},
    },
    "gradient_zero3_bf16_persistent": {"engine": {**BF16, **PERSISTENT}},
}


def plant(trainer: Trainer, world: Ranks, kind: str, steps: set[int]) -> None:
    """Break these steps on rank 1: the losses of its understand pass (`spike`: 1000 times as large), or its gradient. `zero`:
    no rank has a gradient in them."""
    forward = trainer.learner.forward

    def broken(inputs):
        output = forward(inputs)
        if kind == ZERO and trainer.state.step in steps:
            output.loss_sum.register_hook(lambda gradient: gradient * 0.0)
        if kind == ZERO or trainer.state.step not in steps or world.rank != 1:
            return output
        if kind == GRADIENT:
            output.loss_sum.register_hook(lambda gradient: gradient * math.nan)
        if kind == GRADIENT or inputs.pass_name != UNDERSTAND:
            return output
        return output._replace(loss_sum=output.loss_sum * (math.nan if kind == LOSS else 1000.0))

    trainer.learner.forward = broken


def run(case: str, settings: dict, home: Path, world: Ranks) -> str:
    kind, mixed = case.split("_")[0], "bf16" in case
    trainer = trainer_of(f"diverging-{case}", home, world, **settings)
    if mixed:
        plain: PlainReference = MixedReference(trainer, world.size)
    else:
        plain = PlainReference(trainer.recipe, trainer.plan, trainer.objective_of, trainer.accumulation, world.size)
    plant(trainer, world, kind, {BROKEN})
    trainer.dry_run()
    batches, worst, whole = batches_of(trainer, STEPS), 0.0, None
    engine = trainer.learner.engine
    begun = engine.optimizer.micro_step_id
    for step in range(STEPS):
        metrics = trainer.train_step(batches)
        assert metrics[names.OPTIM_SKIPPED] == (step >= BROKEN), (case, metrics)
        assert (engine.global_steps, engine.micro_steps, engine.optimizer.micro_step_id) == (step + 1, step + 1, begun)
        held = [name for name, p in trainer.learner.module.named_parameters() if p.data.numel()]
        whole = held if whole is None else whole
        assert held == whole, "small weights are whole after a skipped step as after any other"
        if step == BROKEN:
            plain.step_number += 1  # its samples are used up, and nothing else
            assert math.isfinite(metrics[names.OPTIM_GRAD_NORM]) == (kind == SPIKE), (case, metrics)
        else:
            losses, norm = plain.step()
            for term, mean in losses.items():
                assert abs(metrics[names.loss(term)] - mean) < 1e-3 * mean, (case, step, term, metrics, mean)
            assert abs(metrics[names.OPTIM_GRAD_NORM] - norm) < 5e-3 * norm, (case, step, metrics, norm)
        worst = max(worst, _error_of_masters(trainer, plain) if mixed else largest_error(trainer, plain, TOLERANCE))
    steps = {float(state["step"]) for state in trainer.learner.engine.optimizer.optimizer.state.values()}
    assert steps == {STEPS - 1.0}, steps
    _check_kept(trainer, world, kind)
    return f"largest error {worst:.1e}, {STEPS - BROKEN - 1} steps after the skipped one"


def _error_of_masters(trainer: Trainer, plain: MixedReference) -> float:
    """Relative to how far the masters have moved."""
    ours = masters(trainer)
    error = torch.cat([(ours[n] - master.detach()).flatten() for n, master in plain.masters.items()]).norm()
    size = torch.cat([master.detach().flatten() for master in plain.masters.values()]).norm()
    assert error < MASTER_BOUND * size, (plain.step_number, error, size)
    return float(error / size)


def _check_kept(trainer: Trainer, world: Ranks, kind: str) -> None:
    """The rows of the broken step lie in files, with all that is known about them."""
    world.barrier()
    folder = kept_rows.step_folder(trainer.folder, BROKEN + 1)
    assert kept_rows.newest(trainer.folder) == folder
    kept = {step.rank: step for step in kept_rows.read(folder)}
    assert set(kept) == ({1} if kind == LOSS else {0, 1}), set(kept)  # all rows where no single one is to blame
    assert (kept[1].step, kept[1].world_size, kept[1].seed) == (BROKEN + 1, world.size, trainer.recipe.seed)
    if world.rank != 1:
        return
    first = BROKEN * trainer.accumulation
    for part in kept[1].passes:
        inputs = trainer.micro_batches[first + part.micro_step].inputs[part.inputs.pass_name]
        assert torch.equal(inputs.tokens, part.inputs.tokens) and inputs.keys == part.inputs.keys
        for row, term, counted in zip(part.rows, inputs.terms.tolist(), (inputs.counts > 0).tolist(), strict=True):
            assert (row.term, row.counted) == (trainer.plan.terms[term], counted)
            if row.stream:
                found = trainer.streams[row.stream].source.find(row.position, 0)
                assert (found.key, found.shard) == (row.key, row.shard), row
            broken = kind == LOSS and part.inputs.pass_name == UNDERSTAND
            assert math.isfinite(float(row.loss)) != broken, row
    passes = {part.inputs.pass_name for part in kept[1].passes}
    assert passes == ({UNDERSTAND} if kind == LOSS else set(trainer.plan.passes))


def stopped(trainer: Trainer, steps: int) -> str:
    """The message with which the trainer stops after `steps` good or skipped ones."""
    batches = batches_of(trainer, steps + 1)
    for _ in range(steps):
        trainer.train_step(batches)
    before = trained_weights(trainer)
    try:
        trainer.train_step(batches)
    except DivergenceError as error:
        after = trained_weights(trainer)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before.values(), after.values(), strict=True))
        said = trainer.world.all_gather_object(str(error))
        assert len(set(said)) == 1, said
        return str(error)
    raise AssertionError("the run went on")


def check_budget(home: Path, world: Ranks) -> str:
    """Two updates may be skipped among the last 16; the third stops all ranks with one message. No default is needed."""
    trainer = trainer_of("budget", home, world, divergence={"skip": 2, "window": 16})
    plant(trainer, world, LOSS, {0, 2, 3})
    said = stopped(trainer, 3)
    assert said.startswith("The loss of understanding (objective understanding) is not finite in step 4; nothing was updated")
    assert "3 of the last 16 updates were not made, and divergence.skip=2 allows 2." in said, said
    assert "rank 1: 0" in said and "rank 0:" not in said and "(understanding)" in said, said
    assert "no checkpoint was saved yet, so it begins at step 1" in said and "newest checkpoint" not in said, said
    assert "megaunigame replay" in said and "optimizer.lr=0.005 (it is 0.01)" in said, said
    return "the third one stops"


def check_none_allowed(home: Path, world: Ranks) -> str:
    """Without a budget an infinite gradient norm stops the run: the step is not counted and nothing is saved."""
    trainer = trainer_of("none-allowed", home, world, divergence={"skip": 0}, engine=ZERO2)
    plant(trainer, world, GRADIENT, {1})
    said = stopped(trainer, 1)
    assert said.startswith("The gradient of step 2 is not finite although the losses of its rows are; nothing was updated")
    assert "divergence.skip=0 allows no update to be skipped" in said and trainer.state.step == 1, said
    assert not list(trainer.folder.glob("checkpoints/step-*"))
    return "the first one stops"


def check_zero(home: Path, world: Ranks) -> str:
    """Two steps without a gradient in a row, counted over a resume, stop all ranks; one alone does not."""
    for name, settings in (("zero2", {"engine": ZERO2}), ("zero3", {})):
        settings = {**settings, "divergence": {"zero_gradients": 2}}
        trainer = trainer_of(f"no-gradient-{name}", home, world, **settings)
        plant(trainer, world, ZERO, {0, 2})
        batches = batches_of(trainer, 3)
        norms = [trainer.train_step(batches)[names.OPTIM_GRAD_NORM] for _ in range(3)]
        assert norms[0] == norms[2] == 0 < norms[1], norms
        trainer.saves.finish()
        resumed = trainer_of(f"no-gradient-{name}", home, world, **settings)
        plant(resumed, world, ZERO, {3})
        said = stopped(resumed, 0)
        assert "exactly 0 in the last 2 steps, up to step 4 (divergence.zero_gradients=2)" in said, said
        assert "Losses of this step: " in said and resumed.state.step == 3, said
    return "stopped"


def check_weights(home: Path, world: Ranks) -> str:
    """NaN in a weight: it is named, whichever rank holds it, and neither samples nor learning rate are blamed."""
    for name, settings, trained in (("zero3", {}, False), ("zero2", {"engine": ZERO2}, True)):
        trainer = trainer_of(f"broken-weight-{name}", home, world, model={"groups": ["lm"]}, **settings)
        weights = dict(trainer.learner.module.named_parameters())
        # The last element: of a slice of rank 1. Not of a query: the attention kernel of CPUs gives finite results for it.
        weight = next(n for n, p in weights.items() if p.requires_grad == trained and n.endswith("v_proj.weight"))
        held = weights[weight].ds_tensor if name == "zero3" else weights[weight]
        if name == "zero2" or world.rank == 1:
            held.data.view(-1)[-1] = math.nan
        said = stopped(trainer, 0)
        kind = "trained" if trained else "frozen"
        assert said.startswith(f"A weight is not finite in step 1: {weight} ({kind}, 1 of "), said
        assert "Samples:" not in said and "optimizer.clip" not in said and "replay" not in said, said
        assert ("No update changes a frozen weight" in said) == (not trained), said
    return "named on both stages"


def check_player(home: Path, world: Ranks) -> str:
    """A broken loss of a player reaches its own parameters only: they are not updated, and the learner is."""
    game = {"unigame": {**PLAYED, "mode": "simultaneous", "buffer": {"capacity": 8}}}
    trainer = trainer_of("player", home, world, objectives=game)
    stepper, (player,) = trainer.stepper, trainer.players
    whole = stepper.terms.joined_sums
    stepper.terms.joined_sums = lambda losses, like: whole({n: x * math.nan for n, x in losses.items()}, like)
    learner = trained_weights(trainer)
    adversary = [p.detach().clone() for p in player.parameters]
    metrics = trainer.train_step(batches_of(trainer, 1))
    after = trained_weights(trainer)
    assert metrics[names.OPTIM_SKIPPED] == 0 and math.isfinite(metrics[names.OPTIM_GRAD_NORM])
    assert not all(torch.equal(a, b) for a, b in zip(learner.values(), after.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(adversary, player.parameters, strict=True))
    return "the learner goes on"


def check_game(home: Path, world: Ranks) -> str:
    """In a skipped step the adversary keeps what is not finite away, and no such row enters the hard buffer."""
    objectives = {
        "unigame": {**PLAYED, "mode": "simultaneous", "buffer": {"capacity": 8, "merge_every": 1}},
        "aia": {"preset": "auto", "targets": "relative", "calibration_steps": 2},
    }
    trainer = trainer_of("skipped-game", home, world, objectives=objectives)
    plant(trainer, world, LOSS, {1})
    batches = batches_of(trainer, 6)
    (game,) = (player for player in trainer.players if hasattr(player, "adversary"))
    for step in range(6):
        before = [p.detach().clone() for p in game.parameters]
        metrics = trainer.train_step(batches)
        moved = not all(torch.equal(a, b) for a, b in zip(before, game.parameters, strict=True))
        assert moved == (step != 1) and metrics[names.OPTIM_SKIPPED] == (step >= 1), (step, moved, metrics)
        assert all(torch.isfinite(p).all() for p in game.parameters)
    # Steps have given a mean, and the broken one is not among them.
    seen = [(term.term, term.seen) for player in trainer.players for term in player.terms if hasattr(term, "full_weight")]
    weights = [term.full_weight for player in trainer.players for term in player.terms if hasattr(term, "full_weight")]
    assert weights and all(weight is not None and math.isfinite(weight) for weight in weights), (weights, seen)
    return "both players go on"


def check_resume(home: Path, world: Ranks) -> str:
    """A run saved after a skipped step and amid the window of spikes continues as the one that was not stopped."""
    settings = {"divergence": {"skip": 2, "window": 5, "spike": 6.0, "on_spike": "skip"}, "engine": BF16}
    whole = trainer_of("skips-and-goes-on", home, world, **settings)
    plant(whole, world, SPIKE, {3, 6})
    batches = batches_of(whole, 8)
    for _ in range(4):
        whole.train_step(batches)
    whole.saves.finish()
    late = [whole.train_step(batches) for _ in range(4)]
    resumed = trainer_of("skips-and-goes-on", home, world, **settings)
    assert resumed.first_step == 4 and resumed.stepper.divergence.recent == [3]
    plant(resumed, world, SPIKE, {6})
    batches = batches_of(resumed, 4)
    again = [resumed.train_step(batches) for _ in range(4)]
    kept = [{n: x for n, x in m.items() if not n.startswith(("perf/", "data/wait"))} for m in (*late, *again)]
    assert kept[:4] == kept[4:], kept
    assert late[-1][names.OPTIM_SKIPPED] == 2
    assert resumed.stepper.divergence.state_dict() == whole.stepper.divergence.state_dict()
    assert resumed.stepper.divergence.recent == [3, 6]
    return "equal to the last bit"


def check_warning(home: Path, world: Ranks) -> str:
    """By default a spike is named by rank 0, and its update made."""
    trainer = trainer_of("warned", home, world, divergence={"window": 6})
    plant(trainer, world, SPIKE, {4})
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("megaunigame.training.refused_step").addHandler(handler)
    batches = batches_of(trainer, 6)
    metrics = [trainer.train_step(batches) for _ in range(5)]
    assert metrics[-1][names.OPTIM_SKIPPED] == 0
    assert len(said) == world.is_main, said
    if said:
        assert "Step 5 has a spike: loss/understanding (objective understanding) is " in said[0] and "on_spike=skip" in said[0]
    return "named once"


def check_left(home: Path, world: Ranks) -> str:
    """Leaves two runs that tests/launch/test_replay.py replays: one breaks by a hook, the weights of the other overflow."""
    for name, settings in LEFT.items():
        trainer = trainer_of(name, home, world, divergence={"skip": 0}, **settings)
        plant(trainer, world, GRADIENT, {BROKEN} if name == FINITE else set())
        if world.is_main:
            trainer.folder.mkdir(parents=True, exist_ok=True)
            (trainer.folder / "recipe.yaml").write_text(as_yaml(trainer.recipe))
        batches = batches_of(trainer, BROKEN + 1)
        for _ in range(BROKEN if name == FINITE else 1):
            trainer.train_step(batches)
        trainer.saves.finish()
        try:
            trainer.train_step(batches)
        except DivergenceError as error:
            assert f"it goes on from {trainer.folder}/checkpoints/step-0000000" in str(error), error
        else:
            raise AssertionError(f"{name} went on")
    return ", ".join(LEFT)


CHECKS: dict[str, Callable[[Path, Ranks], str]] = {
    "budget": check_budget,
    "none_allowed": check_none_allowed,
    "zero": check_zero,
    "weights": check_weights,
    "player": check_player,
    "game": check_game,
    "resume": check_resume,
    "warning": check_warning,
    "left": check_left,
}

if __name__ == "__main__":
    play(run, CASES, CHECKS)
