"""Rank program: the game on ZeRO-2 and ZeRO-3 against plain torch, step by step: both players, both modes.

python -m tests.multi_process.unigame HOME [CASE...]     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from megaunigame.config import load_recipe
from megaunigame.engine.parameters import element_count
from megaunigame.monitoring import names
from megaunigame.objectives.unigame import names as unigame_names
from megaunigame.objectives.unigame.game import Game
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.inputs import UnderstandInputs, take_rows
from megaunigame.step.requests import UNDERSTAND
from megaunigame.training.trainer import Trainer
from tests.multi_process.programs import CHECKPOINTING, LORA, PLAYED, TWICE, ZERO2, batches_of, largest_error, play, trainer_of
from tests.multi_process.unigame_reference import PlainGame

STEPS = 3
TOLERANCE = 1e-5
GAME: dict[str, Any] = {
    **PLAYED,
    **{"turns": 1, "ratio": 1.0, "gain": 2000.0, "clip_norm": 0.5},
    "penalties": {"l2": 3.0, "tv": 2.0, "gate": 1.0},
    "buffer": {"merge_every": 2, "capacity": 8, "temperature": 4.0},
    "pictures_every": 3,
}
SIMULTANEOUS = {"mode": "simultaneous"}
EMBEDDING = {"path": "embedding"}
GAP = {"buffer": {**GAME["buffer"], "hardness": "gap"}}
"""The attack asks about the undisturbed pictures too."""
PIXEL = {"redraw": "pixel"}
OTHERS = {"others": {"unimrg": {"rows": {"edges": 1, "pixel": 3}, "drop": 0.3, "source_blur": 0.5}}}
"""The learner draws the sources itself, some without their condition."""
DRAWING = {"caption_rows": 1, "pixel_rows": 1}
EMU3 = {"family": "emu3"}
CHAMELEON = {"family": "chameleon"}
SHOW_O = {"family": "show_o"}
BAGEL = {"family": "bagel"}
HARMON = {"family": "harmon"}
BLIP3O_NEXT = {"family": "blip3o_next"}
OPENUNI = {"family": "openuni"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alternating": ({}, {}),
    "alternating_lora_accumulation": (GAP, {"model": LORA, "batch": TWICE}),
    "alternating_checkpointing": ({}, {"model": LORA | CHECKPOINTING, "batch": TWICE}),
    "alternating_zero2": ({"anchor": "none", "condition": "caption"}, {"engine": ZERO2}),
    "simultaneous": ({**SIMULTANEOUS, "schedule": "follow", "attack_on": "clean", "clean_rows": 3}, {}),
    "simultaneous_lora_accumulation": (SIMULTANEOUS | GAP, {"model": LORA, "batch": TWICE}),
    "simultaneous_checkpointing": (SIMULTANEOUS, {"model": LORA | CHECKPOINTING, "batch": TWICE}),
    "simultaneous_zero2": ({**SIMULTANEOUS, "every": 2}, {"engine": ZERO2, "model": LORA}),
    "embedding": (EMBEDDING, {"batch": TWICE}),
    "embedding_simultaneous": (EMBEDDING | SIMULTANEOUS, {}),
    "emu3": ({}, {"model": EMU3 | CHECKPOINTING}),
    "chameleon": ({}, {"model": CHAMELEON}),
    "emu3_redraw_simultaneous": (PIXEL | SIMULTANEOUS, {**OTHERS, "model": EMU3 | CHECKPOINTING, "batch": TWICE}),
    "emu3_embedding_zero2": (EMBEDDING, {"model": EMU3, "engine": ZERO2}),
    "emu3_5": ({}, {"model": {"family": "emu3_5"}}),
    "show_o": ({}, {"model": SHOW_O, "batch": TWICE}),
    "show_o_embedding_zero2": (EMBEDDING, {"model": SHOW_O, "engine": ZERO2}),
    "bagel": ({}, {"model": BAGEL | CHECKPOINTING, "batch": TWICE}),
    "bagel_simultaneous": ({**SIMULTANEOUS, "anchor": "none"}, {"model": BAGEL}),
    "harmon": ({}, {"model": HARMON | CHECKPOINTING, "batch": TWICE}),
    "harmon_simultaneous": ({**SIMULTANEOUS, "anchor": "none"}, {"model": HARMON}),
    "blip3o_next": ({}, {"model": BLIP3O_NEXT | CHECKPOINTING, "batch": TWICE}),
    "blip3o_next_simultaneous": ({**SIMULTANEOUS, "anchor": "none"}, {"model": BLIP3O_NEXT}),
    "openuni": ({}, {"model": OPENUNI}),
    "redraw_checkpointing": (PIXEL, {**OTHERS, "model": LORA | CHECKPOINTING, "batch": TWICE}),
    "redraw_accumulation": ({**PIXEL, "every": 2}, {**OTHERS, "batch": TWICE}),
    "redraw_zero2": (
        {"redraw": "caption", "anchor": "none", "condition": "caption"},
        {"others": {"generation": DRAWING | {"caption_rows": 3, "caption_geometry": "fit"}}, "engine": ZERO2, "batch": TWICE},
    ),
    "redraw_simultaneous": (PIXEL | SIMULTANEOUS, {**OTHERS, "batch": TWICE}),
    "redraw_simultaneous_checkpointing": (PIXEL | SIMULTANEOUS, {**OTHERS, "model": LORA | CHECKPOINTING, "batch": TWICE}),
    "redraw_simultaneous_zero2": (
        {**PIXEL, **SIMULTANEOUS, "every": 2},
        {**OTHERS, "engine": ZERO2, "model": LORA, "batch": TWICE},
    ),
    "with_other_objectives": ({}, {"others": {"understanding": {"rows": 1}, "generation": DRAWING}}),
}


def hard_rows(trainer: Trainer, step: Any, world: Ranks) -> list[UnderstandInputs]:
    """The hard rows that every rank put into this step, rank by rank and micro-step by micro-step."""
    at = trainer.plan.rows_at(UNDERSTAND, "hard")
    own = [dataclasses.replace(take_rows(micro.understand, at), visual_delta=None) for micro in step.micro_steps]
    return [rows for rank in world.all_gather_object(own) for rows in rank]


def objectives(game: dict[str, Any], **others: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The game, and of the objectives of the recipe only `others`."""
    return {"generation": {"caption_rows": 0, "pixel_rows": 0}, "understanding": {"rows": 0}, **others, "unigame": game}


def run(case: str, given: tuple[dict[str, Any], dict[str, Any]], home: Path, world: Ranks) -> str:
    game, settings = {**GAME, **given[0]}, dict(given[1])
    trainer = trainer_of(case, home, world, objectives=objectives(game, **settings.pop("others", {})), **settings)
    [unigame] = [player for player in trainer.players if isinstance(player, Game)]
    data_ranks = trainer.mesh.data
    plain = PlainGame(trainer, game, data_ranks)
    for optimizer in (unigame.optimizer.optimizer, plain.adversary_optimizer):
        optimizer.param_groups[0]["eps"] = 1e-2  # keeps AdamW's update a smooth function of the gradient
    trainer.dry_run()
    # What the ranks draw is taken between the drawing and the adversary's move, which the plain game repeats.
    taken: list[list[UnderstandInputs]] = []
    put = unigame._put_hard_rows

    def put_and_take(step: Any) -> Any:
        drawn = put(step)
        taken.append(hard_rows(trainer, step, data_ranks))
        return drawn

    unigame._put_hard_rows = put_and_take
    batches = batches_of(trainer, STEPS)
    start = torch.cat([p.detach().flatten() for p in plain.adversary])
    worst, replayed, bytes_of = 0.0, 0.0, []
    for number in range(STEPS):
        metrics = trainer.train_step(batches)
        adversarial, norm, losses = plain.play(taken[-1])
        replayed += metrics[unigame_names.BUFFER_REPLAYED]
        if case.startswith("redraw"):  # one generate, one understand pass; alternating asks about the pictures in a third
            attack = int(plain.game["mode"] == "alternating" and number % plain.game["every"] == 0)
            assert metrics[names.PERF_PASSES] == (2 + attack) * trainer.accumulation, (case, number, metrics)
        bytes_of.append(metrics[names.PERF_ALLGATHER_BYTES])
        for term, mean in losses.items():
            assert abs(metrics[names.loss(term)] - mean) < 2 * TOLERANCE * mean, (case, number, term, metrics, mean)
        here = (case, number, metrics, plain.norm, adversarial, norm)
        assert abs(metrics[names.OPTIM_GRAD_NORM] - plain.norm) < 10 * TOLERANCE * plain.norm, here
        if number % plain.game["every"] == 0:
            assert abs(metrics[unigame_names.LOSS_ADVERSARIAL] - adversarial) < 2 * TOLERANCE * adversarial, here
            assert abs(metrics[unigame_names.ADVERSARY_GRAD_NORM] - norm) < 1e-3 * norm, here
        pairs = [
            (f"adversary {n}", p, q) for (n, p), q in zip(unigame.adversary.named_parameters(), plain.adversary, strict=True)
        ]
        worst = max(worst, largest_error(trainer, plain, TOLERANCE, *pairs))
    moved = (torch.cat([p.detach().flatten() for p in unigame.adversary.parameters()]) - start).abs().max().item()
    assert moved > 100 * TOLERANCE and replayed > 0, "nothing was played, so nothing was compared"
    return (
        f"largest error {worst:.1e}, adversary moved {moved:.1e}, {replayed:.0f} rows replayed, "
        f"passes {metrics[names.PERF_PASSES]:.0f}, gathered {bytes_of[1]:.0f}"
    )


def check_uneven_ranks(home: Path, world: Ranks) -> str:
    """Rank 1 mines nothing: its filter rejects all, then it has no pictures at all. Both ranks go on, and both replay."""
    game = {**GAME, "clip": {"model": "tiny-random", "tau": -1.0}, "hard_rows": 1, "penalties": {}}
    game |= {"buffer": {"merge_every": 2, "capacity": 16, "percentile": 0}, "controller": {"flipped": 0.3}}
    trainer = trainer_of("uneven", home, world, objectives=objectives(game))
    [unigame] = [player for player in trainer.players if isinstance(player, Game)]
    objective = trainer.objective_of["attack"]
    row = objective.row
    if world.rank == 1:
        unigame.pool.clip.accepts = lambda similarity: torch.zeros_like(similarity, dtype=torch.bool)
        objective.row = lambda request, sample, rng: None if trainer.state.step >= 3 else row(request, sample, rng)
    batches = batches_of(trainer, 6)
    for _ in range(6):
        metrics = trainer.train_step(batches)
    sizes = world.all_gather_object(unigame.pool.buffer.size)
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1, sizes
    lengths = world.all_gather_object(unigame.adversary.held)
    attacked_with = world.all_gather_object(metrics[unigame_names.ADVERSARY_EPS])
    assert len({*lengths}) == len({*attacked_with}) == 1 and lengths[0] != 0.25, lengths
    assert metrics[unigame_names.BUFFER_REPLAYED] == world.size and metrics[unigame_names.BUFFER_MOVED] > 0, metrics
    return f"both ranks replay, buffer {sizes}"


def check_combined(home: Path, world: Ranks) -> str:
    """The combined recipe: three methods, and one generate, one attack and one understand pass per micro-step."""
    given = [
        *(f"{name}={home / folder}" for name, folder in (("model.path", "model"), ("data.scenes.shards", "shards"))),
        *("objectives.unimrg.rows={edges: 2, pixel: 4}", "evaluation.suites={}", "model.max_length=96"),
        *(
            "objectives.unigame.clip={model: tiny-random, tau: -1.0}",
            "loader.workers=0",
            "weights={edges: {start: 0.5, steps: 2}}",
        ),
        *("objectives.unigame.buffer.merge_every=1", "batch.accumulation=2"),
        "objectives.unigame.buffer.label_check=false",  # a random model answers nothing right
    ]
    for mode, passes in (("alternating", 3), ("simultaneous", 2)):
        hardness = "gap" if mode == "alternating" else "loss"  # a gap costs the simultaneous game a pass
        overrides = [
            *given,
            f"objectives.unigame.buffer.hardness={hardness}",
            f"objectives.unigame.mode={mode}",
            f"output={home / 'runs' / f'combined-{mode}'}",
        ]
        trainer = Trainer(load_recipe("launch/recipes/tiny_combined.yaml", overrides), Mesh.of(world))
        trainer.dry_run()
        batches = batches_of(trainer, 3)
        for _ in range(3):
            metrics = trainer.train_step(batches)
            assert metrics[names.PERF_PASSES] == passes * trainer.accumulation == 2 * passes, (mode, metrics)
        terms = ("clean", "hard", "adversarial", "pixel", "edges", "aia_generate", "aia_understand")
        assert all(metrics[names.loss(term)] > 0 for term in terms), metrics
        assert metrics[unigame_names.ADVERSARY_GRAD_NORM] > 0 and metrics[unigame_names.BUFFER_REPLAYED] > 0, metrics
    return "one generate, one attack, one understand pass"


def check_cost(home: Path, world: Ranks) -> str:
    """Passes and gathered bytes per step: what the game costs compared with the same learner rows alone."""
    base = {**GAME, "hard_rows": 0, "pictures_every": 0}
    games = {"sft": {**base, "attack_rows": 0}, "alternating": base, "simultaneous": {**base, "mode": "simultaneous"}}
    cost: dict[str, list[float]] = {}
    for label, game in games.items():
        trainer = trainer_of(f"cost-{label}", home, world, objectives=objectives(game))
        batches = batches_of(trainer, 4)
        steps = [trainer.train_step(batches) for _ in range(4)]
        cost[label] = [steps[-1][names.PERF_PASSES], steps[-1][names.PERF_ALLGATHER_BYTES]]
    model = trainer.learner.module
    used = set(model.groups_of_pass(UNDERSTAND, takes_images=True))
    once = sum(element_count(p) * 4 for n, p in model.named_parameters() if model.group_of(n) in used)
    assert [passes for passes, _ in cost.values()] == [1, 3, 2], cost
    # Every pass gathers its weights once: a model this small keeps them from its forward to its backward (a large one gathers
    # twice). The forward that gives the hidden states needs no head of the language model, so it costs a little less.
    assert cost["sft"][1] == once, (cost, once)
    assert 2 * once < cost["alternating"][1] < 3 * once and once < cost["simultaneous"][1] < 2 * once, (cost, once)
    assert len(set(world.all_gather_object(str(cost)))) == 1, "ranks gathered different amounts"
    return f"passes and gathered bytes {cost}"


CHECKS = {"uneven": check_uneven_ranks, "combined": check_combined, "cost": check_cost}

if __name__ == "__main__":
    play(run, CASES, CHECKS)
