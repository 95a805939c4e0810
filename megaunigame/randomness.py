"""Random state as a pure function of (seed, step, micro-step, rank): nothing to save, nothing that drifts after a resume."""

from __future__ import annotations

import numpy as np
import torch


def seed_micro_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Seed torch's generators (dropout, noise inside the model) for one micro-step of one rank."""
    torch.manual_seed(derive(seed, step, micro, rank))


def derive(*parts: int) -> int:
    """A 63-bit seed from non-negative integers; different parts give unrelated seeds, also (7, 1) and (7, 1, 0)."""
    # With their number: a SeedSequence pads with zeros.
    return int(np.random.SeedSequence((len(parts), *parts)).generate_state(1, np.uint64)[0] >> 1)
