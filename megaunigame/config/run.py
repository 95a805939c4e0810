"""Settings of a run: batch, optimizer, schedules, engine, checkpoints, monitoring, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from megaunigame.config.selection import BestConfig
from megaunigame.errors import ConfigError
from megaunigame.settings import above, at_least, between, half_open, one_of

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
    """Largest learning rate; `schedule` scales it."""
    group_lr: dict[str, float] = field(default_factory=dict)
    """Factor on lr for a group, for example {vision: 0.1}."""
    betas: list[float] = half_open(0, 1, lambda: [0.9, 0.95])
    """Decay of the means of gradients and of their squares."""
    eps: float = above(0, 1.0e-8)
    """Added to the root of the mean square."""
    weight_decay: float = at_least(0, 0.05)
    """Per unit of learning rate; of matrices only."""
    clip: float = above(0, 1.0)
    """Largest gradient norm over all trained parameters."""
    unsupported: ClassVar[dict[str, str]] = dict.fromkeys(
        ("kind", "name", "type"),
        "AdamW is the only optimizer. docs/training.md says why 8-bit Adam and Muon are not. Leave it out.",
    )
    """Keys that a reader looks for here -> why there is no such setting."""

    def check(self, path: str) -> None:
        if len(self.betas) != 2:
            raise ConfigError(f"{path}.betas must be two numbers in [0, 1); got {self.betas}.")


BF16, FP32 = "bf16", "fp32"
"""Precisions of weights and activations, and dtypes of sums over ranks."""
FP16 = "an update is judged by the norm of its gradient, and fp16 would scale it (docs/training.md). Type bf16."
LAST, EMA = "last", "ema"
"""Weights that are evaluated."""
ONCE, TENSOR_PARALLEL, EACH_CALL = "once", "tensor_parallel", "each_call"
"""How an evaluation gets them."""


@dataclass
class EmaConfig:
    """An exponential moving average of the trained weights, next to them, in float32."""

    decay: float = half_open(0, 1, 0.0)
    """average = decay x average + (1 - decay) x weights, from the weights the run begins with; 0: no average is kept. It
    reaches back over about 1 / (1 - decay) updates: fewer than the run makes."""
    every: int = above(0, 1)
    """Optimizer steps between two updates of the average."""


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
    """The length of the run, in steps or in epochs, and the learning rate on the way."""

    steps: int = at_least(0, 0)
    """Optimizer steps of the whole run; 0: as many as `epochs` need."""
    epochs: float = at_least(0, 0.0)
    """Instead of `steps`: how often the samples of a stream are used, 1.5 for example. The plan says how many steps that is.
    Tasks in rotation use up the sample of a row also when it is not their turn, so of each they train on a part only."""
    epochs_of: str = ""
    """The stream whose samples `epochs` count; empty: the one that needs the most steps, so every stream is used that often or
    more. An epoch of a mix is as many samples as its data sets have together."""
    kind: str = one_of(["cosine", "linear", "constant", "flat_linear"], "cosine")
    """After the warm-up: `cosine` or `linear` down to min_ratio, `constant`, or `flat_linear` (flat for the first half, then
    linear to min_ratio)."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises from 0; part of `steps`."""
    min_ratio: float = between(0, 1, 0.0)
    """Lowest rate / largest rate, for the kinds that fall: they come near it in the last step, and would have it one step
    later."""

    def check(self, path: str) -> None:
        if not self.steps and not self.epochs:
            raise ConfigError(f"How long is the run? Type {path}.steps=N (optimizer steps) or {path}.epochs=N.")
        if self.steps and self.epochs:
            raise ConfigError(
                f"{path}.steps={self.steps} and {path}.epochs={self.epochs:g} are both given. Type {path}.steps=0 to count in "
                f"epochs, or {path}.epochs=0 to count in steps."
            )
        if self.epochs_of and not self.epochs:
            raise ConfigError(f"{path}.epochs_of={self.epochs_of} is for {path}.epochs, which is not given. Leave it out.")
        if self.warmup_steps < 0 or (self.steps and self.warmup_steps > self.steps):
            raise ConfigError(
                f"{path}.warmup_steps must lie in 0..{path}.steps={self.steps}; got {self.warmup_steps}. "
                f"Type {path}.warmup_steps={min(max(0, self.warmup_steps), self.steps)}."
            )


@dataclass
class WeightConfig:
    """A factor on the weight of one loss term, by optimizer step."""

    start: float = at_least(0, 1.0)
    """Factor in step 1."""
    end: float = at_least(0, 1.0)
    """Factor after `steps` steps."""
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
    """JSON file with the knobs of DeepSpeed: ZeRO stage, offloading, sizes of buckets."""
    precision: str = one_of([BF16, FP32], BF16, {"fp16": FP16})
    """`bf16` (fp32 master weights) or `fp32`."""
    reduce_dtype: str = one_of([BF16, FP32], FP32)
    """Dtype in which gradients are summed over the ranks: `fp32`, or `bf16` for half the traffic."""
    deterministic: bool = False
    """Deterministic kernels of torch only; an operation without one is an error. Slower. `make test-gpu` checks
    whether two runs on GPUs are then bit-equal; on CPUs they are with or without it."""
    sequence_ranks: int = above(0, 1)
    """Consecutive ranks that share every row, for rows of 16,000 tokens and more: in the layers of the language model each has
    a part of the positions (docs/scaling.md#long-rows). Must divide the ranks and the attention heads; 1: none share."""
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
        if self.reduce_dtype == BF16 and self.precision == FP32:
            raise ConfigError(
                f"{path}.reduce_dtype=bf16 would round the gradients of {path}.precision=fp32. Type {path}.reduce_dtype=fp32, "
                f"or {path}.precision=bf16."
            )


@dataclass
class CheckpointConfig:
    every: int = above(0, 500)
    """Optimizer steps between checkpoints; one is also written at the end and when a signal ends the run."""
    keep: int = above(0, 2)
    """Newest checkpoints that are kept."""
    best: BestConfig = field(default_factory=BestConfig)
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
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where metrics, pictures, texts and settings go besides the run folder: files in megaunigame/monitoring/trackers
    (`tensorboard`, `wandb`, `mlflow`). When one fails, a warning says so once, and the run goes on."""
    progress: bool = True
    """A live line at the bottom of a terminal, with speed, time left, losses and memory."""
    gradients: int = at_least(0, 0)
    """Optimizer steps between measurements of each term's gradient (norm, and cosine with the others'); 0: none. A measurement
    costs one more forward and backward of every term."""
    gradient_layers: list[int] = at_least(0, list)
    """Layers of the language model whose trained parameters are looked at; empty: the middle one."""
    elsewhere: ClassVar[dict[str, str]] = {"tensorboard": "monitor.trackers=[] (none) or monitor.trackers=[tensorboard]"}
    """Former keys -> what to type."""

    def check(self, path: str) -> None:
        twice = sorted({name for name in self.trackers if self.trackers.count(name) > 1})
        if twice:
            raise ConfigError(f"{path}.trackers names {', '.join(twice)} twice. Type {path}.trackers={_listed(self.trackers)}.")


def _listed(names: list[str]) -> str:
    """Each name once, as it is typed."""
    return f"[{','.join(dict.fromkeys(names))}]"


@dataclass
class EvaluationConfig:
    before: bool = True
    """Also evaluate before step 1. An evaluation that a signal has ended is done by the next launch before its first step."""
    every: int = at_least(0, 0)
    """Optimizer steps between evaluations; 0: only before and after."""
    weights: str = one_of([LAST, EMA], LAST)
    """`last`: the weights of the step; `ema`: their average."""
    gather: str = one_of([AUTO, ONCE, TENSOR_PARALLEL, EACH_CALL], AUTO)
    """How suites get the weights under ZeRO-3. `once`: gathered before the first suite, and whole on every rank until the last
    one is done. `tensor_parallel`: while a suite draws, the ranks of a node divide the layers of the language model and draw
    the same pictures together. `each_call`: gathered in every model call, so in every token of a picture. `auto`: the first of
    the three that fits."""
    gather_share: float = between(0, 1, 0.5)
    """What fits, with `gather=auto`: the weights take at most this part of the free memory of a device."""
    tensor_ranks: int = at_least(0, 0)
    """Ranks of one host that divide a copy: a divisor of the ranks, the key-value heads and the features; 0: the largest."""
    most_drawing_hours: float = at_least(0, 0)
    """A launch is refused if the gathers for the pictures of one evaluation take longer, as estimated from one that is timed;
    0: none is. Weights that are gathered once count as nothing, divided ones as the sums of each call."""
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> settings of a suite; `suite` names its module in megaunigame/evaluation/suites (default: the label itself)."""
