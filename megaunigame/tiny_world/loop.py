"""A small training loop for the parts of the tiny world that are trained.

All randomness of a step comes from a generator that is a function of (seed, step), so an interrupted run ends with the same
numbers as an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from megaunigame.errors import CheckpointError
from megaunigame.parallel.accelerator import cpu_computes_bf16

WARM_UP_STEPS = 20


class Stage(ABC):
    """The training of one part. All state that must survive a restart is in `module` (parameters and buffers)."""

    name: str
    module: nn.Module

    @abstractmethod
    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss of one step, and numbers for the log line."""

    def after_update(self, step: int, generator: torch.Generator) -> None:
        """Called after the optimizer's step, to change state outside gradient descent."""


@dataclass(frozen=True)
class LoopSettings:
    """Settings of one training."""

    steps: int
    learning_rate: float
    seed: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    log_every: int = 25
    save_every_seconds: float = 120.0


def bf16_if_fast() -> torch.autocast:
    """Inside, the CPU computes in bfloat16 if it has instructions for it; else in float32, which is faster then."""
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu_computes_bf16())


def generator_at(seed: int, step: int) -> torch.Generator:
    """The generator of one step: a function of (seed, step) only."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


def train(stage: Stage, settings: LoopSettings, folder: Path) -> None:
    """Train `stage.module` for `settings.steps` steps, continuing from `folder` when it holds a state of this stage.

    Raises CheckpointError when that state has another seed or number of steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / f"{stage.name}.state.pt"
    optimizer = torch.optim.AdamW(
        stage.module.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    first = _resume(stage, optimizer, settings, state_path)
    clock = saved_at = time.monotonic()
    for step in range(first, settings.steps):
        generator = generator_at(settings.seed, step)
        # Linear warm-up, then half a cosine down to 1 % of the peak.
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm * (0.01 + 0.99 * cosine)
        loss, numbers = stage.loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(stage.module.parameters(), settings.clip)
        optimizer.step()
        stage.after_update(step, generator)

        done, now = step + 1, time.monotonic()
        if done % settings.log_every == 0 or done == settings.steps:
            rate = (now - clock) / (done - first)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
            print(
                f"{stage.name} {done:>6}/{settings.steps}  loss {loss.item():.4f}  {shown}  "
                f"{rate:.2f} s/step  ETA {rate * (settings.steps - done) / 60:.1f} min",
                flush=True,
            )
        if now - saved_at > settings.save_every_seconds or done == settings.steps:
            _save(stage, optimizer, settings, done, state_path)
            saved_at = now


def _save(stage: Stage, optimizer: torch.optim.Optimizer, settings: LoopSettings, step: int, path: Path) -> None:
    counts = {"step": step, "steps": settings.steps, "seed": settings.seed}
    state = {**counts, "module": stage.module.state_dict(), "optimizer": optimizer.state_dict()}
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def _resume(stage: Stage, optimizer: torch.optim.Optimizer, settings: LoopSettings, path: Path) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, asked in (("seed", settings.seed), ("steps", settings.steps)):
        if state[name] != asked:
            raise CheckpointError(
                f"{path} was made with {name}={state[name]}, but this run has {name}={asked}. "
                f"Give --{name} {state[name]} to continue it, or delete the file to start again."
            )
    stage.module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"{stage.name}: continuing {path} at step {state['step']} of {state['steps']}", flush=True)
    return state["step"]
