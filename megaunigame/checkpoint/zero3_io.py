"""The engine's shards on disk. Frozen weights are never written: they are reloaded from the model's own folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megaunigame.engine.zero3 import Learner


def save(learner: Learner, parent: Path, tag: str) -> None:
    """Collective: every rank writes its slice of trained weights and optimizer state into `parent/tag`."""
    learner.engine.save_checkpoint(str(parent), tag=tag, save_latest=False, exclude_frozen_parameters=True)


def load(learner: Learner, folder: Path) -> None:
    """Collective: restore what `save` wrote, at the same number of ranks."""
    # Not strict: the frozen weights are absent on purpose. The manifest's signature has vouched for the trained ones.
    learner.engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)


def signature(learner: Learner) -> str:
    """Fingerprint of the trained parameters' names and whole shapes."""
    trained = [
        f"{name}{tuple(getattr(p, 'ds_shape', p.shape))}" for name, p in learner.module.named_parameters() if p.requires_grad
    ]
    return hashlib.sha256("\n".join(sorted(trained)).encode()).hexdigest()
