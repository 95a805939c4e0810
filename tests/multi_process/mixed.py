"""Rank program: bf16 runs on ZeRO-2 and ZeRO-3 against plain mixed precision, step by step.

python -m tests.multi_process.mixed HOME CASE...     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.training.trainer import Trainer
from tests.multi_process.averages import PlainAverage
from tests.multi_process.mixed_reference import MixedReference
from tests.multi_process.programs import (
    CHECKPOINTING,
    LORA,
    TWICE,
    ZERO2,
    ZERO2_OFFLOADED,
    batches_of,
    of_other_families,
    play,
    trainer_of,
)
from tests.multi_process.tiny_run import long_world

STEPS = 3
EARLY = 2
"""Steps before a weight that was rounded the other way can show: the first update comes from equal gradients."""
EARLY_LOSS_BOUND, LOSS_BOUND, NORM_BOUND, MASTER_BOUND = 5e-6, 5e-4, 1e-3, 2e-3
"""Relative; of the masters, to their update. Reached: 2e-7 in all; where a weight was rounded the other way, 2e-6 early, then
2e-4, 5e-4, 9e-4."""
AVERAGE_BOUND = 1e-4
"""Absolute; a weight that was rounded the other way moves its master by a part of a step of 1e-2."""
UNCLIPPED = {"clip": 100.0}
"""The factor of clipping has the norm in it, and the norm another last bit."""
BLIP3O_NEXT_GROUPS = ["embedding", "lm", "connector", "caption", "dit"]
CASES: dict[str, dict] = {
    "full_accumulation": {"batch": {"accumulation": 3}, "optimizer": UNCLIPPED, "ema": {"decay": 0.6}},
    "lora_checkpointing": {"model": LORA | CHECKPOINTING, "batch": TWICE},
    "zero2_accumulation": {"engine": ZERO2, "batch": TWICE},
    "zero2_lora": {"engine": ZERO2, "model": LORA, "ema": {"decay": 0.6, "every": 2}},
    "zero2_offloaded_optimizer": {"engine": ZERO2_OFFLOADED, "batch": TWICE},
    "reduced_in_bf16": {"engine": {"reduce_dtype": "bf16"}, "batch": TWICE},
    "zero2_reduced_in_bf16": {"engine": {**ZERO2, "reduce_dtype": "bf16"}},
    "emu3_checkpointing": {"model": {"family": "emu3", **CHECKPOINTING}, "batch": TWICE},
    "emu3_5": {"model": {"family": "emu3_5"}},
    "openuni": {"model": {"family": "openuni", "groups": ["vision", "aligner", "lm", "queries", "connector", "dit"]}},
    "harmon": {"model": {"family": "harmon", **CHECKPOINTING}, "batch": TWICE, "optimizer": UNCLIPPED},
    "blip3o_next": {"model": {"family": "blip3o_next", "groups": BLIP3O_NEXT_GROUPS, **CHECKPOINTING}, "batch": TWICE},
    "packed_independent_turns": {
        "model": {**CHECKPOINTING, "pack_tokens": 384},
        "objectives": {"understanding": {"rows": 3, "independent": True}},
        "batch": TWICE,
    },
    "long": {},
    "aia": {"objectives": {"aia": {"targets": "relative", "weights": {"generate": 5.0, "understand": 10.0}}}},
}
CASES |= of_other_families(CASES, model=CHECKPOINTING, batch=TWICE)


def masters(trainer: Trainer) -> dict[str, Tensor]:
    """The whole fp32 master of every trained weight, on every rank."""
    trained = {n: p for n, p in trainer.learner.module.named_parameters() if p.requires_grad}
    return {n: safe_get_full_fp32_param(p) for n, p in trained.items()}


def run(case: str, settings: dict, home: Path, world: Ranks) -> str:
    settings = {**settings, "engine": {"precision": "bf16", **settings.get("engine", {})}}
    if case.startswith("long"):
        settings = {**settings, **long_world(home)}
    trainer = trainer_of(f"mixed-{case}", home, world, **settings)
    plain = MixedReference(trainer, world.size)
    start = {n: m.detach().clone() for n, m in plain.masters.items()}
    average = PlainAverage(trainer, start)
    assert ("passes are packed" in trainer.describe()) == case.startswith("packed")
    trainer.dry_run()
    batches = batches_of(trainer, STEPS)
    worst_losses, worst_norm = [0.0, 0.0], 0.0
    for step in range(STEPS):
        metrics = trainer.train_step(batches)
        losses, norm = plain.step()
        pairs = [(metrics[names.loss(term)], mean) for term, mean in losses.items()]
        errors = [abs(a - b) / b for a, b in [*pairs, (metrics[names.LOSS_TOTAL], plain.total)]]
        worst_losses[step >= EARLY] = max(worst_losses[step >= EARLY], *errors)
        of_average = average.step(step + 1, plain.masters, lambda: masters(trainer))
        assert of_average < AVERAGE_BOUND, (case, step, of_average)
        worst_norm = max(worst_norm, abs(metrics[names.OPTIM_GRAD_NORM] - norm) / norm)
    ours = masters(trainer)
    assert set(ours) == set(start)
    error = torch.cat([(ours[n] - plain.masters[n].detach()).flatten() for n in start]).norm()
    move = torch.cat([(plain.masters[n].detach() - start[n]).flatten() for n in start])
    apart = float(error / move.norm())
    assert move.abs().max() > 1e-3, "nothing was trained, so nothing was compared"
    early, late = worst_losses
    assert early < EARLY_LOSS_BOUND and late < LOSS_BOUND, (case, early, late)
    assert worst_norm < NORM_BOUND and apart < MASTER_BOUND, (case, worst_norm, apart)
    return f"losses {early:.1e} and {late:.1e}, norms {worst_norm:.1e}, masters {apart:.1e} of the update"


if __name__ == "__main__":
    play(run, CASES, {})
