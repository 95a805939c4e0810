"""The engine's shards on disk. Frozen weights are never written: they are reloaded from the model folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError

SHARDS = "*_optim_states.pt"
"""Every rank writes one."""


def save(learner: Learner, parent: Path, tag: str) -> None:
    """Collective: every rank writes its slice of trained weights and optimizer state into `parent/tag`."""
    learner.engine.save_checkpoint(str(parent), tag=tag, save_latest=False, exclude_frozen_parameters=True)


def load(learner: Learner, folder: Path) -> None:
    """Collective: restore what `save` wrote, at the same number of ranks.

    The optimizer's settings stay those of the recipe: the engine would restore the saved ones, and silently ignore a
    learning-rate factor or weight decay changed on resume.
    """
    optimizer = learner.engine.optimizer
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    # Not strict: the frozen weights are absent on purpose. The manifest's signature covers the trained ones.
    path, _ = learner.engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
    if path is None:
        raise CheckpointError(f"The engine found nothing to load in {folder}. Resume from an older step folder.")
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    optimizer.clip_grad = learner.engine.gradient_clipping()


def signature(learner: Learner) -> str:
    """Hash of the ZeRO stage, and of names and whole shapes of the trained parameters per group."""
    names = {id(p): n for n, p in learner.module.named_parameters()}
    groups = [
        sorted(f"{names[id(p)]}{tuple(getattr(p, 'ds_shape', p.shape))}" for p in parameters)
        for parameters in learner.trained_groups
    ]
    return hashlib.sha256(json.dumps([learner.zero_stage, groups]).encode()).hexdigest()
