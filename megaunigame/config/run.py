"""Settings of a run: batch, optimizer, schedules, engine, checkpoints, monitoring, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from megaunigame.errors import ConfigError
from megaunigame.settings import above, at_least, half_open, one_of

LINEAR, COSINE, AUTO = "linear", "cosine", "auto"
NEVER = "never"
"""Kinds of factors on the weight of a loss term."""


@dataclass
class BatchConfig:
    """global_rows = (sum of the objectives' rows) x accumulation x world size; give one of the two, or both if they agree."""

    accumulation: int | None = at_least(1, None)
    """Micro-steps per optimizer step."""
    global_rows: int | None = at_least(1, None)
    """Rows of all terms and ranks in one optimizer step."""


@dataclass
class OptimizerConfig:
    """AdamW. Matrices decay, vectors (norms, biases) do not."""

    lr: float = above(0, 2.0e-5)
    group_lr: dict[str, float] = field(default_factory=dict)
    """Factor on lr for a group, for example {vision: 0.1}."""
    betas: list[float] = half_open(0, 1, lambda: [0.9, 0.95])
    eps: float = 1.0e-8
    weight_decay: float = at_least(0, 0.05)
    clip: float = above(0, 1.0)
    """Largest gradient norm over all trained parameters."""

    def check(self, path: str) -> None:
        if len(self.betas) != 2:
            raise ConfigError(f"{path}.betas must be two numbers in [0, 1); got {self.betas}.")


WARN, SKIP = "warn", "skip"
"""What a spike does."""


@dataclass
class DivergenceConfig:
    """Updates that are not made, because a loss or the gradient is not finite or far above the last ones; and a run that has
    stopped learning."""

    skip: int = at_least(0, 3)
    """Updates that may be skipped among the last `window` steps; one more stops the run. 0: the first one stops it."""
    window: int = above(1, 128)
    """Optimizer steps: of the budget, and of the median that spikes are measured from."""
    spike: float = at_least(0, 20.0)
    """A loss or a gradient norm this many robust standard deviations above its median is a spike; 0: none is. For `skip`,
    published runs use about 6 (OLMo)."""
    on_spike: str = one_of([WARN, SKIP], WARN)
    """`warn`: a spike is named on the console; `skip`: its update is skipped, too, within the same budget."""
    zero_gradients: int = at_least(0, 16)
    """Successive steps with a gradient norm of exactly 0 that stop the run: nothing is learned any more. 0: none do."""

    def check(self, path: str) -> None:
        if self.skip >= self.window:
            raise ConfigError(
                f"{path}.skip={self.skip} of the last {path}.window={self.window} updates would never stop a run. "
                f"Type {path}.skip={self.window - 1} at most, or {path}.window={self.skip + 1} at least."
            )


@dataclass
class ScheduleConfig:
    steps: int = above(0, MISSING)
    """Optimizer steps of the whole run."""
    kind: str = one_of(["cosine", "constant", "flat_linear"], "cosine")
    """`cosine` down to min_ratio, `constant`, or `flat_linear` (flat for the first half, then linear to min_ratio)."""
    warmup_steps: int = 0
    min_ratio: float = 0.0

    def check(self, path: str) -> None:
        if not 0 <= self.warmup_steps <= self.steps:
            raise ConfigError(
                f"{path}.warmup_steps must lie in 0..{path}.steps={self.steps}; got {self.warmup_steps}. "
                f"Type {path}.warmup_steps={min(max(0, self.warmup_steps), self.steps)}."
            )


@dataclass
class WeightConfig:
    """A factor on the weight of one loss term, by optimizer step."""

    start: float = at_least(0, 1.0)
    end: float = at_least(0, 1.0)
    steps: int = at_least(0, 0)
    """From `start` in step 1 to `end` after this many steps; 0: `end` from the beginning."""
    kind: str = one_of([LINEAR, COSINE, AUTO], LINEAR)
    """Way from `start` to `end`: `linear` or `cosine`. `auto`: linear, and times the factor that gives this term's gradient the
    norm of another's, measured every `monitor.gradients` steps."""
    like: str = ""
    """`auto`: the term whose gradient norm this one gets; empty: the first term of the plan that is not `auto` itself."""


@dataclass
class EngineConfig:
    ds_config: str = "ds_configs/zero3.json"
    precision: str = one_of(["bf16", "fp32"], "bf16")
    """`bf16` (fp32 master weights) or `fp32`."""
    reduce_dtype: str = one_of(["bf16", "fp32"], "fp32")
    """Dtype in which gradients are summed over the ranks: `fp32`, or `bf16` for half the traffic."""
    deterministic: bool = False
    """Deterministic kernels of torch only; an operation without one is an error. Slower. `make test-gpu` checks
    whether two runs on GPUs are then bit-equal; on CPUs they are with or without it."""
    expect_ranks: int = at_least(0, 0)
    """Ranks that the run is meant for; a launch with another number is refused; 0: any. A launcher that does not find its host
    file goes on alone on this machine."""
    timeout_minutes: float = above(0, 30.0)
    """How long the ranks may wait for the slowest one, at the start and in a collective. After 80 % of it the watchdog ends the
    run with the name of the rank that did not arrive."""
    lost_seconds: float = at_least(5, 30.0)
    """How long a rank may give no sign of life, because its process is stopped or its node is gone, before the others end. Four
    times as long before the first step."""

    def check(self, path: str) -> None:
        if self.reduce_dtype == "bf16" and self.precision == "fp32":
            raise ConfigError(
                f"{path}.reduce_dtype=bf16 would round the gradients of {path}.precision=fp32. Type {path}.reduce_dtype=fp32, "
                f"or {path}.precision=bf16."
            )


@dataclass
class CheckpointConfig:
    every: int = above(0, 500)
    """Optimizer steps between checkpoints; one is also written at the end and when a signal ends the run."""
    keep: int = above(0, 2)
    resume: str = "auto"
    """`auto`: the newest complete checkpoint of this run's folder, if any; `never`; or the path of one step folder. The
    last two count once: the same command again goes on from what it has saved."""
    reset_data: bool = False
    """On resume, keep weights, optimizer and players, but begin every data stream at its first sample; the data may be other
    data. Once: the same command again goes on in that data."""
    elsewhere: ClassVar[dict[str, str]] = {"weights_from": "model.weights_from"}
    """Keys that a reader looks for here -> where they are."""


@dataclass
class MonitorConfig:
    every: int = above(0, 10)
    """Optimizer steps between log lines (metrics.jsonl has every step)."""
    tensorboard: bool = True
    progress: bool = True
    gradients: int = at_least(0, 0)
    """Optimizer steps between measurements of each term's gradient (norm, and cosine with the others'); 0: none. A measurement
    costs one more forward and backward of every term."""
    gradient_layers: list[int] = at_least(0, list)
    """Layers of the language model whose trained parameters are looked at; empty: the middle one."""


@dataclass
class EvaluationConfig:
    before: bool = True
    """Also evaluate before step 1. An evaluation that a signal has ended is done by the next launch before its first step."""
    every: int = at_least(0, 0)
    """Optimizer steps between evaluations; 0: only before and after."""
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> settings of a suite; `suite` names its module in megaunigame/evaluation/suites (default: the label itself)."""
