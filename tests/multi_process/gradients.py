"""Rank program: the trainer on ZeRO-2 and ZeRO-3 against plain torch, step by step, in several settings.

python -m tests.multi_process.gradients HOME [CASE...]     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero import partition_parameters

from megaunigame.engine.parameters import element_count, rank_count
from megaunigame.engine.whole_weights import gather_seconds
from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.training.trainer import Trainer
from tests.multi_process.attention_reference import AttentionReference
from tests.multi_process.averages import PlainAverage
from tests.multi_process.balance_reference import BalanceReference
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.programs import (
    CHECKPOINTING,
    LORA,
    TWICE,
    ZERO2,
    ZERO2_OFFLOADED,
    batches_of,
    largest_error,
    of_other_families,
    play,
    trained_weights,
    trainer_of,
)

STEPS = 3
NONE_OF_THESE = {"understanding": {"rows": 0}, "generation": {"caption_rows": 0}}


def unimrg(**settings) -> dict:
    tasks = {"rows": {"understanding": 2, "edges": 1, "pixel": 2}, "drop": 0.3}
    return {**NONE_OF_THESE, "unimrg": {**tasks, **settings}}


TOLERANCE = 1e-5
OFFLOADED = {"ds_config": "tests/multi_process/zero3_offload.json"}
WEIGHTS = {"targets": "relative", "weights": {"generate": 5.0, "understand": 10.0}}
LARGE_WEIGHTS = {"targets": "relative", "weights": {"generate": 40.0, "understand": 40.0}}
JANUS_GROUPS = ["vision", "aligner", "lm", "generation_embed", "generation_head"]
ROUND_ROBIN = unimrg(schedule="round_robin")
INDEPENDENT = {"understanding": {"rows": 3, "independent": True}}
UNDERSTANDING_ONLY = {"understanding": {"rows": 3}, "generation": {"caption_rows": 0}}
GENERATION_ONLY = {"understanding": {"rows": 0}, "generation": {"caption_rows": 1, "pixel_rows": 2, "drop": 0.3}}
THRICE = {"accumulation": 3}
EMA = {"decay": 0.6}
DEALT, PACKED = {"balance": True}, {"pack_tokens": 192}
"""Compared with a reference whose ranks take consecutive samples."""
ON_DEMAND = {"ds_config": "tests/multi_process/zero3_on_demand.json"}
"""Weights are gathered for one module, and released after it."""
GROUPS_OF_TWO = {"ds_config": "tests/multi_process/zero3_hpz.json"}
DORA = {"train": "lora", "lora": {**LORA["lora"], "dora": True, "rslora": True}}
OPENUNI = {"family": "openuni"}
EMU3 = {"family": "emu3"}
EMU3_5 = {"family": "emu3_5"}
CHAMELEON = {"family": "chameleon"}
SHOW_O = {"family": "show_o"}
HARMON = {"family": "harmon"}
BAGEL = {"family": "bagel"}
BOTH_EXPERTS = {"train": "lora", "lora": {**LORA["lora"], "targets": []}}
BLIP3O_NEXT = {"family": "blip3o_next"}
BALANCE = {
    "objectives": {"understanding": {"rows": 2, "weight": 0.7}, "generation": {"caption_rows": 2, "pixel_rows": 1}},
    "weights": {"caption": {"start": 0.1, "end": 0.8, "steps": 3}, "pixel": {"kind": "auto", "like": "understanding"}},
    "monitor": {"gradients": 2},
}
CASES = {
    "full": {},
    "accumulation": {"batch": THRICE, "ema": EMA},
    "checkpointing": {"model": CHECKPOINTING, "batch": TWICE},
    "lora": {"model": LORA},
    "lora_checkpointing": {"model": LORA | CHECKPOINTING, "ema": {**EMA, "every": 2}},
    "dora_checkpointing": {"model": DORA | CHECKPOINTING, "batch": TWICE, "engine": ON_DEMAND},
    "dora_zero2": {"model": DORA, "engine": ZERO2},
    "all_groups": {"model": {"groups": JANUS_GROUPS}, "optimizer": {"group_lr": {"vision": 0.1}}},
    "weights": {
        "objectives": {"understanding": {"rows": 2, "weight": 0.3}, "generation": {"pixel_rows": 1, "pixel_weight": 2.0}}
    },
    "independent_turns": {"objectives": INDEPENDENT},
    "understanding_only": {"objectives": UNDERSTANDING_ONLY},
    "generation_only": {"objectives": GENERATION_ONLY},
    "zero2": {"engine": ZERO2, "batch": TWICE, "ema": EMA},
    "offloaded_optimizer": {"engine": OFFLOADED, "batch": TWICE, "ema": EMA},
    "zero2_offloaded_optimizer": {"engine": ZERO2_OFFLOADED},
    "unimrg_shared_encoder": {
        "objectives": unimrg(source_gradient=0.1, images="paired", rows={"understanding": 2, "pixel": 2}),
        "model": {"groups": JANUS_GROUPS},
    },
    "unimrg_round_robin": {"objectives": ROUND_ROBIN, "batch": THRICE},
    "unimrg_sampled": {"objectives": unimrg(schedule="sampled"), "batch": TWICE},
    "unimrg_zero2_round_robin": {"objectives": ROUND_ROBIN, "engine": ZERO2},
    "openuni": {"model": OPENUNI, "objectives": unimrg()},
    "openuni_all_groups_checkpointing": {
        "model": {**OPENUNI, **CHECKPOINTING, "groups": ["vision", "aligner", "lm", "queries", "connector", "dit"]},
        "batch": TWICE,
    },
    "openuni_lora_round_robin": {"model": OPENUNI | LORA, "objectives": ROUND_ROBIN, "batch": THRICE},
    "openuni_zero2": {"model": OPENUNI, "engine": ZERO2},
    "emu3": {"model": EMU3, "objectives": unimrg(source_gradient=0.1)},
    "emu3_lora_checkpointing": {"model": EMU3 | LORA | CHECKPOINTING, "objectives": ROUND_ROBIN, "batch": THRICE},
    "emu3_zero2": {"model": EMU3, "engine": ZERO2},
    "emu3_5": {"model": EMU3_5, "objectives": unimrg(source_gradient=0.1)},
    "emu3_5_lora_checkpointing": {"model": EMU3_5 | LORA | CHECKPOINTING, "objectives": ROUND_ROBIN, "batch": THRICE},
    "chameleon": {"model": CHAMELEON, "objectives": unimrg(source_gradient=0.1)},
    "chameleon_lora_checkpointing": {"model": CHAMELEON | LORA | CHECKPOINTING, "batch": TWICE},
    "show_o": {"model": SHOW_O, "objectives": unimrg(source_gradient=0.1)},
    "show_o_lora_checkpointing": {"model": SHOW_O | LORA | CHECKPOINTING, "objectives": ROUND_ROBIN, "batch": THRICE},
    "show_o_zero2": {"model": SHOW_O, "engine": ZERO2},
    "harmon": {"model": HARMON, "objectives": unimrg(source_gradient=0.1)},
    "harmon_checkpointing": {"model": HARMON | CHECKPOINTING, "batch": TWICE},
    "harmon_lora_round_robin": {"model": HARMON | LORA, "objectives": ROUND_ROBIN, "batch": THRICE},
    "harmon_zero2": {"model": HARMON, "engine": ZERO2},
    "bagel": {"model": BAGEL, "objectives": unimrg(source_gradient=0.1)},
    "bagel_lora_checkpointing": {"model": BAGEL | BOTH_EXPERTS | CHECKPOINTING, "objectives": ROUND_ROBIN, "batch": THRICE},
    "bagel_zero2": {"model": BAGEL, "engine": ZERO2},
    "bagel_steps_of_one_expert": {"model": BAGEL, "objectives": ROUND_ROBIN},
    "bagel_understanding_only": {"model": BAGEL, "objectives": UNDERSTANDING_ONLY, "batch": TWICE},
    "bagel_generation_only": {"model": BAGEL, "objectives": GENERATION_ONLY, "batch": TWICE},
    "bagel_editing": {
        "model": {**BAGEL, **CHECKPOINTING, "groups": ["vision", "aligner", "lm", "lm_gen", "generation"]},
        "objectives": {**NONE_OF_THESE, "understanding": {"rows": 1}, "editing": {"rows": 2, "sources": 3}},
        "data": {"train": {"shards": "edits", "window": 2}},
        "batch": TWICE,
    },
    "blip3o_next": {"model": BLIP3O_NEXT, "objectives": unimrg(source_gradient=0.1)},
    "blip3o_next_all_groups_checkpointing": {
        "model": {**BLIP3O_NEXT, **CHECKPOINTING, "groups": ["embedding", "lm", "connector", "caption", "dit"]},
        "batch": TWICE,
        "engine": ON_DEMAND,
    },
    "blip3o_next_lora_round_robin": {"model": BLIP3O_NEXT | LORA, "objectives": ROUND_ROBIN, "batch": THRICE},
    "blip3o_next_zero2": {"model": BLIP3O_NEXT, "engine": ZERO2},
    "aia": {"objectives": {"aia": WEIGHTS}, "batch": TWICE},
    "aia_checkpointing_one_layer": {
        "objectives": {"aia": {**LARGE_WEIGHTS, "layers": [1], "terms": ["understanding", "caption", "pixel"]}},
        "model": CHECKPOINTING,
    },
    "aia_lora_measured_weights": {
        "objectives": {"aia": {"preset": "auto", "targets": "relative", "ratio": 2.0, "calibration_steps": 2}},
        "model": LORA | CHECKPOINTING,
        "batch": TWICE,
    },
    "aia_zero2_independent_turns": {"objectives": {"aia": WEIGHTS, **INDEPENDENT}, "engine": ZERO2},
    "openuni_aia": {"model": OPENUNI, "objectives": {"aia": LARGE_WEIGHTS}},
    "chameleon_aia": {"model": CHAMELEON, "objectives": {"aia": LARGE_WEIGHTS}},
    "emu3_aia": {"model": EMU3 | CHECKPOINTING, "objectives": {"aia": LARGE_WEIGHTS}},
    "emu3_5_aia": {"model": EMU3_5, "objectives": {"aia": LARGE_WEIGHTS}},
    "bagel_aia": {"model": BAGEL | CHECKPOINTING, "objectives": {"aia": LARGE_WEIGHTS}},
    "blip3o_next_aia": {"model": BLIP3O_NEXT, "objectives": {"aia": LARGE_WEIGHTS}},
    "show_o_aia": {"model": SHOW_O | CHECKPOINTING, "objectives": {"aia": LARGE_WEIGHTS}},
    "packed": {
        "model": {**CHECKPOINTING, "pack_tokens": 384},
        "objectives": {"aia": LARGE_WEIGHTS, **INDEPENDENT},
        "batch": TWICE,
    },
    "zero2_lora": {"engine": ZERO2, "model": LORA},
    "balance": BALANCE,
    "balance_lora_checkpointing": {**BALANCE, "model": LORA | CHECKPOINTING, "batch": TWICE},
    "balance_zero2": {**BALANCE, "engine": ZERO2},
    "balance_openuni": {**BALANCE, "model": OPENUNI},
    "dealt_zero2": {
        "objectives": {"understanding": {"rows": 3}},
        "loader": DEALT,
        "model": PACKED,
        "batch": TWICE,
        "engine": ZERO2,
    },
    "dealt_paired": {
        "objectives": unimrg(images="paired", rows={"understanding": 2, "pixel": 2}),
        "loader": DEALT,
        "model": PACKED,
    },
}
GROUPS = {"groups_packed_lora": {"model": LORA | CHECKPOINTING | PACKED, "batch": TWICE, "engine": GROUPS_OF_TWO}}
"""For four ranks, whose rows are packed: a second copy of the weights inside each group of two."""
CASES |= of_other_families(CASES, model=CHECKPOINTING, objectives=unimrg(), batch=TWICE)


def check_partitioned(trainer: Trainer, world: Ranks) -> None:
    """No rank holds more than its share of any parameter (one element of padding at most per parameter and rank)."""
    parameters = list(trainer.learner.module.parameters())
    whole, local = sum(map(element_count, parameters)), sum(map(rank_count, parameters))
    assert local <= whole / world.size + len(parameters), (local, whole)
    assert sum(p.data.numel() for p in parameters) == 0, "weights are whole between the passes"


@contextlib.contextmanager
def gathers(among: Counter[int]) -> Iterator[None]:
    """Counts elements of weights in `among`, by how many ranks they are gathered from."""
    gather = partition_parameters._dist_allgather_fn

    def counted(part: torch.Tensor, whole: torch.Tensor, group: Any = None) -> Any:
        among[whole.numel() // part.numel()] += whole.numel()
        return gather(part, whole, group)

    with mock.patch.object(partition_parameters, "_dist_allgather_fn", counted):
        yield


def run(case: str, settings: dict, home: Path, world: Ranks) -> str:
    with mock.patch.object(deepspeed.zero, "GatheredParameters", side_effect=deepspeed.zero.GatheredParameters) as loading:
        trainer = trainer_of(case, home, world, **settings)
    recipe = trainer.recipe
    reference = AttentionReference if "aia" in recipe.objectives else BalanceReference if recipe.weights else PlainReference
    plain = reference(recipe, trainer.plan, trainer.objective_of, trainer.accumulation, trainer.mesh.data.size)
    start = {n: p.detach().clone() for n, p in plain.trained.items()}
    average = PlainAverage(trainer, start)
    measured = sum(name.startswith("aia_") for name in trainer.stepper.terms.names)
    assert trainer.describe().count("its attention is measured in") == measured
    assert ("understanding 3 (at most 4, weight 1)" in trainer.describe()) == (case == "dealt_zero2")
    stage3 = "zero2" not in case
    if stage3:
        check_partitioned(trainer, world)
        whole = sum(map(element_count, trainer.learner.module.parameters()))
        at_once = [sum(map(element_count, call.args[0])) for call in loading.call_args_list]
        assert bool(at_once) == ("dora" in case), "weights are read in slices; PEFT gathers one layer at a time for its norms"
        assert max(at_once, default=0) < whole / 4, "too much of the model at once"
        trained = sum(element_count(p) for p in trainer.learner.module.parameters() if p.requires_grad)
        assert f"model: {whole:,} parameters, {trained:,} trained" in trainer.describe()
    assert ("passes are packed" in trainer.describe()) == bool(recipe.model.pack_tokens)
    trainer.dry_run()
    batches = batches_of(trainer, STEPS)
    worst = 0.0
    for step in range(STEPS):
        with gathers(among := Counter()):
            metrics = trainer.train_step(batches)
        if case in GROUPS:
            assert set(among) == {2}, (case, step, among)  # no gather leaves its group
        assert metrics[names.PERF_PASSES] == len(trainer.plan.passes) * trainer.accumulation  # no objective adds a pass
        losses, norm = plain.step()
        for name, mean in [(names.LOSS_TOTAL, plain.total), *((names.loss(t), mean) for t, mean in losses.items())]:
            assert abs(metrics[name] - mean) < 2 * TOLERANCE * mean, (case, step, name, metrics, mean)
        assert abs(metrics[names.OPTIM_GRAD_NORM] - norm) < 10 * TOLERANCE * norm, (case, step, metrics, norm)
        if isinstance(plain, BalanceReference):
            found = {name: value for name, value in metrics.items() if name.startswith("gradient/")}
            assert bool(found) == (step % 2 == 0), (case, step)
            assert found == pytest.approx(plain.measured, rel=1e-3, abs=1e-4), (case, step)
            assert metrics["weight/pixel"] == pytest.approx(plain.equal["pixel"], rel=1e-3)
        worst = max(worst, largest_error(trainer, plain, TOLERANCE))
        of_average = average.step(step + 1, plain.trained, lambda: trained_weights(trainer))
        assert of_average < TOLERANCE, (case, step, of_average)
    if case in GROUPS:
        counted = trainer.learner.gathered.total
        with gathers(among := Counter()):
            assert gather_seconds(trainer.learner) > 0
        assert set(among) == {2} and trainer.learner.gathered.total == counted, "what drawing takes is timed as passes gather"
    if stage3:
        check_partitioned(trainer, world)
    ours = trained_weights(trainer)
    our_way = torch.cat([(p.float() - start[n]).flatten() for n, p in ours.items()])
    plain_way = torch.cat([(plain.trained[n].detach() - start[n]).flatten() for n in ours])
    direction = torch.cosine_similarity(our_way, plain_way, dim=0).item()
    assert plain_way.abs().max() > 100 * TOLERANCE, "nothing was trained, so nothing was compared"
    assert direction > 1 - 1e-6, (case, direction)
    return (
        f"largest error {worst:.1e} after {STEPS} steps, largest move {plain_way.abs().max():.1e}, "
        f"cosine of the two ways {direction:.6f}"
    )


if __name__ == "__main__":
    play(run, CASES | GROUPS, {})
