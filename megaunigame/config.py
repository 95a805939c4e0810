"""The recipe: one YAML file, dotted overrides, strict dataclasses.

Every number has one owner. Batch, learning rates, clipping and precision live here; ds_configs hold engine knobs only.
The settings of an objective or an evaluation suite are the dataclass `Config` inside its own file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from megaunigame.data.pictures.rules import MAX_PIXELS, WHITE, ground_from
from megaunigame.errors import ConfigError
from megaunigame.settings import above, at_least, between, check_values, fill, half_open, one_of, read

PRETRAINED, RANDOM = "pretrained", "random"
"""Initial weights of a run."""
LINEAR, COSINE, AUTO = "linear", "cosine", "auto"
"""Kinds of factors on the weight of a loss term."""


@dataclass
class LoraConfig:
    rank: int = above(0, 16)
    alpha: float = 32.0
    dropout: float = half_open(0, 1, 0.05)
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass
class ModelConfig:
    path: str = ""
    """Folder of a Hugging Face model of the family, or of an official checkpoint."""
    family: str = "janus"
    """Module name in megaunigame/models."""
    weights: str = one_of([PRETRAINED, RANDOM], PRETRAINED)
    """`pretrained`: those in `path`; `random`: to measure speed and memory of a shape; only the configuration in `path` is
    read."""
    size: str = ""
    """Name of a published size of the family. Built with `weights: random`, instead of the configuration in `path`; planned by
    launch/plan.py when there is no folder at `path`."""
    weights_from: str = ""
    """Begin with the weights of another run (its folder, or one of its step folders) or of an exported folder, in place of
    those in `path`, whose configuration, processor and frozen tokenizer stay. Fixed when the run begins."""
    adapter: str = ""
    """Begin with the adapters of this folder (`launch/export.py --adapter`) in place of fresh ones; needs `train: lora`."""
    train: str = one_of(["lora", "full"], "lora")
    """`lora`: adapters in the language model; `full`: the groups below."""
    groups: list[str] = field(default_factory=list)
    """Groups trained in `full`; empty: the family's default. A wrong name is an error that lists the family's groups."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: str = one_of(["sdpa", "eager", "flash_attention_2"], "sdpa")
    max_length: int = above(0, 2048)
    """Longest sequence of a row, in tokens, image tokens included."""
    gradient_checkpointing: bool = False

    def check(self, path: str) -> None:
        if not self.path and not self.size:
            raise ConfigError(
                f"`{path}.path` is missing. Give the folder of a model, for example {path}.path=models/Janus-Pro-7B."
            )
        if not self.path and self.weights == PRETRAINED:
            raise ConfigError(
                f"{path}.size={self.size} is a shape without weights. Give the folder of a model in {path}.path, or type "
                f"{path}.weights=random to measure the shape."
            )
        if self.weights_from and self.weights == RANDOM:
            raise ConfigError(f"{path}.weights_from names weights, and {path}.weights is {RANDOM}. Give one of the two.")
        if self.adapter and self.train != "lora":
            raise ConfigError(
                f"{path}.adapter={self.adapter} needs {path}.train=lora; got {path}.train={self.train}. To train all weights "
                f"on top of adapters, export their run merged (without --adapter) and give that folder in {path}.weights_from."
            )


@dataclass
class CacheConfig:
    """Where the shards of a URL are kept on each node while they are needed, and the shards of a `source` for good; all ranks
    of the node share it."""

    folder: str = ""
    """Must be given when shards are URLs (then on a local disk), and for a `source` (then better shared by all nodes)."""
    gigabytes: float = above(0, 100.0)
    """The least recently used shards make room for new ones. Must hold two windows."""


@dataclass
class MixedConfig:
    """One data set of a mix."""

    shards: str = ""
    source: str = ""
    image_root: str = ""
    split: str = ""
    weight: int = above(0, 1)
    """Of every (sum of the weights) samples of the stream, this many come from here."""
    window: int = above(0, 8)
    where: list[str] = field(default_factory=list)

    def check(self, path: str) -> None:
        if bool(self.shards) == bool(self.source):
            raise ConfigError(
                f"{path} needs either {path}.shards (a folder or URL) or {path}.source (a data set to pack), and not both."
            )
        _check_source(self, path)
        _check_where(self.where, path)


@dataclass
class StreamConfig:
    shards: str = ""
    """Folder of shards that data_prep wrote (any WebDataset tars work; a missing index is built), or its URL."""
    source: str = ""
    """Instead of `shards`: a JSON file in the LLaVA form, tars, or a Hugging Face folder (parquet, arrow). It is packed into
    `cache.folder` when a run first uses it."""
    image_root: str = ""
    """Folder of the pictures of a `source` that names files; empty: where the JSON file is."""
    split: str = ""
    """Of a `source` with several."""
    window: int = above(0, 8)
    """Shards shuffled together; only these are open at a time."""
    where: list[str] = field(default_factory=list)
    """Filters, all of which a sample must pass: `COLUMN OP NUMBER` on numbers of its JSON, or `has FIELD`."""
    mix: dict[str, MixedConfig] = field(default_factory=dict)
    """Instead of `shards`: several data sets by weight."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    backend: str = "index"
    """Module name in megaunigame/data/sources: `index`; or `webdataset` for tars without random access
    (`pipe:...`), with weaker guarantees: docs/streaming.md."""
    shuffle_buffer: int = above(0, 1000)
    """Samples shuffled together by a loader worker, for `webdataset`."""
    ground: str = WHITE
    """What transparent pictures lie on: white, black, gray or '#rrggbb'."""
    max_pixels: int = at_least(1, MAX_PIXELS)
    """Width x height of the largest picture that is decoded; larger ones are bad samples."""

    def check(self, path: str) -> None:
        if sum(map(bool, (self.shards, self.source, self.mix))) != 1:
            instead = (
                f" Type {path}={{source: {self.source}, cache: {{folder: FOLDER}}}} to replace all." if self.source else ""
            )
            raise ConfigError(
                f"{path} needs one of `shards` (a folder or URL), `source` (a data set to pack on first use) and `mix` (data "
                f"sets by weight), and not both.{instead}"
            )
        _check_source(self, path)
        if (self.source or any(part.source for part in self.mix.values())) and not self.cache.folder:
            raise ConfigError(
                f"{path}.cache.folder is missing: what is packed of a `source` is kept there. Type for example "
                f"{path}.cache.folder=shards/packed."
            )
        if self.source and self.backend != "index":
            raise ConfigError(f"{path}: a `source` is packed into shards with an index. Leave out {path}.backend.")
        _check_where(self.where, path)
        ground_from(f"{path}.ground", self.ground)
        if self.mix and (self.where or self.window != StreamConfig.window):
            raise ConfigError(f"{path}: give `where` and `window` to the data sets of the mix, as {path}.mix.NAME.where=[...].")


def _check_source(data: MixedConfig | StreamConfig, path: str) -> None:
    for name, given in (("image_root", data.image_root), ("split", data.split)):
        if given and not data.source:
            raise ConfigError(f"{path}.{name}={given} belongs to {path}.source, which is not given. Leave it out.")


def _check_where(rules: list[Any], path: str) -> None:
    for rule in rules:
        if not isinstance(rule, str):  # OmegaConf lets mappings through
            raise ConfigError(f"{path}.where must be a list of text such as 'clip_similarity >= 0.28'; got {rule!r}.")


@dataclass
class LoaderConfig:
    workers: int = at_least(0, 2)
    prefetch: int = above(0, 4)
    """Micro-batches that each worker prepares ahead."""
    max_bad_fraction: float = at_least(0, 0.001)
    """The run stops when more than this fraction of a stream's samples had to be replaced."""
    max_dummy_fraction: float = between(0, 1, 0.5)
    """The run stops when more than this fraction of a term's rows are dummies, because samples lack what the rows need, and
    when a term gets no row at all; 1: never."""
    max_cut_fraction: float = between(0, 1, 0.5)
    """The run stops when more than this fraction of a term's rows had text that did not fit into model.max_length."""


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
    timeout_minutes: float = above(0, 30.0)
    """How long a collective may wait for the slowest rank."""

    def check(self, path: str) -> None:
        if self.reduce_dtype == "bf16" and self.precision == "fp32":
            raise ConfigError(
                f"{path}.reduce_dtype=bf16 would round the gradients of {path}.precision=fp32. Type {path}.reduce_dtype=fp32, "
                f"or {path}.precision=bf16."
            )


@dataclass
class CheckpointConfig:
    every: int = above(0, 500)
    """Optimizer steps between checkpoints; one is also written at the end and on SIGTERM."""
    keep: int = above(0, 2)
    resume: str = "auto"
    """`auto`: the newest complete checkpoint of this run's folder, if any; `never`; or the path of one step folder."""


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
    """Also evaluate before step 1."""
    every: int = at_least(0, 0)
    """Optimizer steps between evaluations; 0: only before and after."""
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> settings of a suite; `suite` names its module in megaunigame/evaluation/suites (default: the label itself)."""


@dataclass
class Recipe:
    name: str = MISSING
    output: str = MISSING
    """Run folder: checkpoints, metrics.jsonl, report.html."""
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: dict[str, StreamConfig] = field(default_factory=dict)
    """Name of a stream -> its source of samples; objectives take their rows from a stream."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Module name in megaunigame/objectives -> its settings."""
    weights: dict[str, WeightConfig] = field(default_factory=dict)
    """Loss term -> factor on its weight by step, for example {depth: {start: 0.02, end: 1, steps: 100}}."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def check(self, path: str) -> None:
        if not self.data:
            raise ConfigError("`data` names no stream. Give one, for example data.scenes.shards=shards/train.")
        if not self.objectives:
            raise ConfigError("`objectives` is empty. Give at least one, for example objectives.understanding.rows=4.")
        for term, weight in self.weights.items():
            if weight.kind == AUTO and not self.monitor.gradients:
                raise ConfigError(f"weights.{term}.kind=auto needs measured gradients. Type monitor.gradients=20, for example.")
            if weight.kind != AUTO and weight.like:
                raise ConfigError(f"weights.{term}.like is for kind=auto. Type weights.{term}.kind=auto, or leave it out.")


def load_recipe(path: str, overrides: list[str]) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides: YAML values, each replacing the value of its key.

    Raises ConfigError naming the key: unknown (with the nearest legal one), missing, of a wrong type, or out of range.
    """
    bad = [o for o in overrides if "=" not in o]
    if bad:
        raise ConfigError(f"Override {bad[0]!r} has no '='. Write key=value, for example schedule.steps=100.")
    return fill(Recipe, read(path, overrides, "recipe", "launch/recipes/tiny_sft.yaml"), "")


def resolve_batch(batch: BatchConfig, rows_per_micro_step: int, ranks: int) -> int:
    """Micro-steps per optimizer step. The triple must multiply: global_rows = rows x accumulation x data ranks."""
    check_values(batch, "batch")
    unit = rows_per_micro_step * ranks
    if batch.global_rows is None:
        return 1 if batch.accumulation is None else batch.accumulation
    if batch.global_rows % unit:
        raise ConfigError(
            f"batch.global_rows={batch.global_rows} is not a multiple of {unit} = {rows_per_micro_step} rows per micro-step "
            f"x {ranks} ranks. Type batch.global_rows={max(1, batch.global_rows // unit) * unit}, "
            "or change the objectives' rows or the number of ranks."
        )
    accumulation = batch.global_rows // unit
    if batch.accumulation not in (None, accumulation):
        raise ConfigError(
            f"The batch does not multiply: {rows_per_micro_step} rows x accumulation {batch.accumulation} x {ranks} ranks "
            f"= {unit * batch.accumulation}, but batch.global_rows={batch.global_rows}. "
            f"Type batch.accumulation={accumulation}, or leave one of the two out."
        )
    return accumulation


def as_yaml(recipe: Recipe) -> str:
    """The resolved recipe, as written into the run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
