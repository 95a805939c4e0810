"""The recipe: one YAML file, dotted overrides, strict dataclasses.

Every number has one owner. Batch, learning rates, clipping and precision live here; ds_configs hold engine knobs only.
The settings of an objective or an evaluation suite are the dataclass `Config` inside its own file.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megaunigame.errors import ConfigError
from megaunigame.registry import unknown

PRETRAINED, RANDOM = "pretrained", "random"
"""Where the weights of a run begin."""


@dataclass
class LoraConfig:
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass
class ModelConfig:
    path: str = ""
    """Folder of a Hugging Face model of the family, or of an official checkpoint."""
    family: str = "janus"
    """Module name in megaunigame/models."""
    weights: str = "pretrained"
    """`pretrained`: those in `path`; `random`: drawn, to measure speed and memory of a shape. Nothing is read of `path` but
    the configuration."""
    size: str = ""
    """Name of a published size of the family: what is built where `weights: random`, before the configuration in `path`, and
    what launch/plan.py plans where no folder is at `path`."""
    train: str = "lora"
    """`lora`: adapters in the language model; `full`: the groups below."""
    groups: list[str] = field(default_factory=list)
    """Groups trained in `full`; empty: the family's default. A wrong group is answered with those of the family."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: str = "sdpa"
    """`sdpa`, `eager` or `flash_attention_2`."""
    max_length: int = 2048
    """Longest sequence of a row, in tokens, image tokens included."""
    gradient_checkpointing: bool = False


@dataclass
class CacheConfig:
    """Where the shards of a URL are kept on each node while they are needed; all ranks of the node share it."""

    folder: str = ""
    """On a local disk. Must be given when shards are URLs."""
    gigabytes: float = 100.0
    """Longest unused shards make room for new ones. Must hold two windows."""


@dataclass
class MixedConfig:
    """One data set of a mix."""

    shards: str = MISSING
    weight: int = 1
    """Of every (sum of the weights) samples of the stream, this many come from here."""
    window: int = 8
    where: list[str] = field(default_factory=list)


@dataclass
class StreamConfig:
    shards: str = ""
    """Folder of shards that data_prep wrote (any WebDataset tars work; an index is built where none is), or its URL."""
    window: int = 8
    """Shards shuffled together; only these are live at a time."""
    where: list[str] = field(default_factory=list)
    """Filters, all of which a sample must pass: `COLUMN OP NUMBER` on numbers of its JSON, or `has FIELD`."""
    mix: dict[str, MixedConfig] = field(default_factory=dict)
    """Instead of `shards`: several data sets by weight."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    backend: str = "index"
    """`index`; or `webdataset` for tars without random access (`pipe:...`), with weaker guarantees: docs/streaming.md."""
    shuffle_buffer: int = 1000
    """Samples shuffled together by a loader worker, for `webdataset`."""


@dataclass
class LoaderConfig:
    workers: int = 2
    prefetch: int = 4
    """Micro-batches that each worker prepares ahead."""
    max_bad_fraction: float = 0.001
    """The run stops when more than this share of a stream's samples had to be substituted."""


@dataclass
class BatchConfig:
    """global_rows = (sum of the objectives' rows) x accumulation x world size; give one of the two, or both if they agree."""

    accumulation: int | None = None
    """Micro-steps per optimizer step."""
    global_rows: int | None = None
    """Rows of all terms and ranks in one optimizer step."""


@dataclass
class OptimizerConfig:
    """AdamW. Matrices decay, vectors (norms, biases) do not."""

    lr: float = 2.0e-5
    group_lr: dict[str, float] = field(default_factory=dict)
    """Factor on lr for a group, for example {vision: 0.1}."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1.0e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest gradient norm over all trained parameters."""


@dataclass
class ScheduleConfig:
    steps: int = MISSING
    """Optimizer steps of the whole run."""
    kind: str = "cosine"
    """`cosine` down to min_ratio, `constant`, or `flat_linear` (flat for the first half, then linear to min_ratio)."""
    warmup_steps: int = 0
    min_ratio: float = 0.0


@dataclass
class EngineConfig:
    ds_config: str = "ds_configs/zero3.json"
    precision: str = "bf16"
    """`bf16` (fp32 master weights) or `fp32`."""
    reduce_dtype: str = "fp32"
    """In which dtype gradients are summed over the ranks: `fp32`, or `bf16` for half the traffic."""
    deterministic: bool = False
    """Deterministic kernels of torch only; an operation without one is an error. Slower. Whether two runs on GPUs are then
    equal to the last bit is checked by `make test-gpu`; on CPUs they are with or without it."""
    timeout_minutes: float = 30.0
    """How long a collective may wait for the slowest rank."""


@dataclass
class CheckpointConfig:
    every: int = 500
    """Optimizer steps between checkpoints; one is also written at the end and on SIGTERM."""
    keep: int = 2
    resume: str = "auto"
    """`auto`: the newest complete checkpoint of this run's folder, if any; `never`; or the path of one step folder."""


@dataclass
class MonitorConfig:
    every: int = 10
    """Optimizer steps between log lines (metrics.jsonl has every step)."""
    tensorboard: bool = True
    progress: bool = True


@dataclass
class EvaluationConfig:
    before: bool = True
    """Also evaluate before step 1."""
    every: int = 0
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
    """Name of a stream -> where its samples come from; objectives draw their rows from one of them."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Module name in megaunigame/objectives -> its settings."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def load_recipe(path: str, overrides: list[str]) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides: YAML values, each replacing what stood under its key.

    Raises ConfigError naming the key: unknown (with the nearest legal one), missing, of a wrong type, or out of range.
    """
    if not Path(path).is_file():
        raise ConfigError(f"No recipe at {path}. Give the path of a YAML file, for example launch/recipes/tiny_sft.yaml.")
    bad = [o for o in overrides if "=" not in o]
    if bad:
        raise ConfigError(f"Override {bad[0]!r} has no '='. Write key=value, for example schedule.steps=100.")
    try:
        given = OmegaConf.load(path)
        for override in overrides:
            key, _, value = override.partition("=")
            # Replaced, not merged: `evaluation.suites={}` means no suites.
            OmegaConf.update(given, key, OmegaConf.create({"value": yaml.safe_load(value)}).value, merge=False)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a legal YAML recipe: {error}") from error
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of settings at its top level.")
    recipe = fill(Recipe, OmegaConf.to_container(given, resolve=True), "")
    check_ranges(recipe)
    return recipe


def fill(schema: Any, given: Any, path: str) -> Any:
    """An instance of the dataclass `schema` with the values of the mapping `given`; `path` names it in messages."""
    check_keys(schema, given, path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), given)
        filled = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = ".".join(part for part in (path, error.full_key or "") if part)
        # OmegaConf adds lines about its own classes.
        raise ConfigError(f"Setting {key!r}: {str(error.msg or error).splitlines()[0]}") from error
    return filled


def check_keys(schema: Any, given: Any, path: str) -> None:
    """Refuse keys the schema does not have, at any depth, naming the nearest legal key."""
    if not isinstance(given, dict):
        raise ConfigError(f"Setting {path or 'recipe'!r} must be a mapping of settings; got {given!r}.")
    types = typing.get_type_hints(schema)
    fields = [f.name for f in dataclasses.fields(schema)]
    for key, value in given.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise ConfigError(f"In {path or 'the recipe'}: {unknown('key', str(key), fields)}")
        kind = types[key]
        if dataclasses.is_dataclass(kind):
            check_keys(kind, value, where)
        elif typing.get_origin(kind) is dict and not isinstance(value, dict | None):
            raise ConfigError(f"Setting {where!r} must be a mapping of settings; got {value!r}.")
        elif typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
            for name, item in (value or {}).items():
                check_keys(typing.get_args(kind)[1], item, f"{where}.{name}")


def check_ranges(recipe: Recipe) -> None:
    """Rules between and within settings that types cannot say."""
    legal = {
        "model.train": (recipe.model.train, ["lora", "full"]),
        "model.weights": (recipe.model.weights, [PRETRAINED, RANDOM]),
        "model.attention": (recipe.model.attention, ["sdpa", "eager", "flash_attention_2"]),
        "schedule.kind": (recipe.schedule.kind, ["cosine", "constant", "flat_linear"]),
        "engine.precision": (recipe.engine.precision, ["bf16", "fp32"]),
        "engine.reduce_dtype": (recipe.engine.reduce_dtype, ["bf16", "fp32"]),
        **{f"data.{name}.backend": (stream.backend, ["index", "webdataset"]) for name, stream in recipe.data.items()},
    }
    for key, (got, choices) in legal.items():
        if got not in choices:
            raise ConfigError(unknown(f"value of {key}", got, choices))
    if not recipe.model.path and not recipe.model.size:
        raise ConfigError("`model.path` is missing. Give the folder of a model, for example model.path=models/Janus-Pro-7B.")
    if not recipe.model.path and recipe.model.weights == PRETRAINED:
        raise ConfigError(
            f"model.size={recipe.model.size} is a shape without weights. Give the folder of a model in model.path, or type "
            "model.weights=random to measure the shape."
        )
    positive = {
        "schedule.steps": recipe.schedule.steps,
        "optimizer.lr": recipe.optimizer.lr,
        "optimizer.clip": recipe.optimizer.clip,
        "checkpoint.every": recipe.checkpoint.every,
        "checkpoint.keep": recipe.checkpoint.keep,
        "monitor.every": recipe.monitor.every,
        "model.max_length": recipe.model.max_length,
        "model.lora.rank": recipe.model.lora.rank,
        "loader.prefetch": recipe.loader.prefetch,
        "engine.timeout_minutes": recipe.engine.timeout_minutes,
    }
    for name, stream in recipe.data.items():
        positive |= {
            f"data.{name}.window": stream.window,
            f"data.{name}.shuffle_buffer": stream.shuffle_buffer,
            f"data.{name}.cache.gigabytes": stream.cache.gigabytes,
        }
        for part, source in stream.mix.items():
            positive |= {f"data.{name}.mix.{part}.window": source.window, f"data.{name}.mix.{part}.weight": source.weight}
    for key, value in positive.items():
        if value <= 0:
            raise ConfigError(f"{key} must be greater than 0; got {value}.")
    not_negative = {
        "loader.workers": recipe.loader.workers,
        "loader.max_bad_fraction": recipe.loader.max_bad_fraction,
        "evaluation.every": recipe.evaluation.every,
        "optimizer.weight_decay": recipe.optimizer.weight_decay,
    }
    for key, value in not_negative.items():
        if value < 0:
            raise ConfigError(f"{key} must be 0 or more; got {value}.")
    if recipe.engine.reduce_dtype == "bf16" and recipe.engine.precision == "fp32":
        raise ConfigError(
            "engine.reduce_dtype=bf16 would round the gradients of engine.precision=fp32. Type engine.reduce_dtype=fp32, or "
            "engine.precision=bf16."
        )
    if len(recipe.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.optimizer.betas):
        raise ConfigError(f"optimizer.betas must be two numbers in [0, 1); got {recipe.optimizer.betas}.")
    if not 0 <= recipe.model.lora.dropout < 1:
        raise ConfigError(f"model.lora.dropout must lie in [0, 1); got {recipe.model.lora.dropout}.")
    if not 0 <= recipe.schedule.warmup_steps <= recipe.schedule.steps:
        raise ConfigError(
            f"schedule.warmup_steps must lie in 0..schedule.steps={recipe.schedule.steps}; got {recipe.schedule.warmup_steps}. "
            f"Type schedule.warmup_steps={min(max(0, recipe.schedule.warmup_steps), recipe.schedule.steps)}."
        )
    for name, stream in recipe.data.items():
        _check_stream(f"data.{name}", stream)
    if not recipe.data:
        raise ConfigError("`data` names no stream. Give one, for example data.scenes.shards=shards/train.")
    if not recipe.objectives:
        raise ConfigError("`objectives` is empty. Give at least one, for example objectives.understanding.rows=4.")


def _check_stream(path: str, stream: StreamConfig) -> None:
    if bool(stream.shards) == bool(stream.mix):
        raise ConfigError(f"{path} needs either `shards` (a folder or URL) or `mix` (data sets by weight), and not both.")
    for key, where in ((path, stream.where), *((f"{path}.mix.{name}", part.where) for name, part in stream.mix.items())):
        for rule in where:
            if not isinstance(rule, str):  # OmegaConf lets mappings through
                raise ConfigError(f"{key}.where must be a list of text such as 'clip_similarity >= 0.28'; got {rule!r}.")
    if stream.backend == "webdataset" and (stream.mix or stream.where):
        raise ConfigError(f"{path}: mixes and filters need an index, which backend=webdataset does without. Leave out one.")
    if stream.mix and (stream.where or stream.window != StreamConfig.window):
        raise ConfigError(f"{path}: give `where` and `window` to the data sets of the mix, as {path}.mix.NAME.where=[...].")


def resolve_batch(batch: BatchConfig, rows_per_micro_step: int, world_size: int) -> int:
    """Micro-steps per optimizer step. The triple must multiply: global_rows = rows x accumulation x world size."""
    unit = rows_per_micro_step * world_size
    if batch.global_rows is None:
        accumulation = 1 if batch.accumulation is None else batch.accumulation
        if accumulation < 1:
            raise ConfigError(f"batch.accumulation must be at least 1; got {accumulation}.")
        return accumulation
    if batch.global_rows < 1 or batch.global_rows % unit:
        raise ConfigError(
            f"batch.global_rows={batch.global_rows} is not a multiple of {unit} = {rows_per_micro_step} rows per micro-step "
            f"x {world_size} ranks. Type batch.global_rows={max(1, batch.global_rows // unit) * unit}, "
            "or change the objectives' rows or the number of ranks."
        )
    accumulation = batch.global_rows // unit
    if batch.accumulation not in (None, accumulation):
        raise ConfigError(
            f"The batch does not multiply: {rows_per_micro_step} rows x accumulation {batch.accumulation} x {world_size} ranks "
            f"= {unit * batch.accumulation}, but batch.global_rows={batch.global_rows}. "
            f"Type batch.accumulation={accumulation}, or leave one of the two out."
        )
    return accumulation


def as_yaml(recipe: Recipe) -> str:
    """The resolved recipe, as written into the run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
