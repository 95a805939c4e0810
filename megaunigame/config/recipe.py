"""The recipe: one YAML file, dotted overrides, strict dataclasses.

Every number has one owner. Batch, learning rates, clipping and precision live here; ds_configs hold engine knobs only.
The settings of an objective or an evaluation suite are the dataclass `Config` inside its own file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from megaunigame.config.data import STOP, SUBSTITUTE, LoaderConfig, StreamConfig
from megaunigame.config.model import FLASH, LORA, ModelConfig
from megaunigame.config.run import (
    AUTO,
    BF16,
    EMA,
    TENSOR_PARALLEL,
    BatchConfig,
    CheckpointConfig,
    DivergenceConfig,
    EmaConfig,
    EngineConfig,
    EvaluationConfig,
    MonitorConfig,
    OptimizerConfig,
    ScheduleConfig,
    WeightConfig,
)
from megaunigame.config.selection import EarlyStopConfig, check_metric
from megaunigame.errors import ConfigError
from megaunigame.registry import use_plugins
from megaunigame.settings import check_values, fill, read
from megaunigame.shipped import RECIPES


@dataclass
class Recipe:
    name: str = MISSING
    """Title of the run in its report."""
    output: str = MISSING
    """Run folder: checkpoints, metrics.jsonl, report.html."""
    seed: int = 0
    """Of all random draws: data order, dropout, sampling, new weights."""
    plugins: list[str] = field(default_factory=list)
    """Python modules with objectives, families, suites, ... of your own (docs/extending.md#plugins). They run as part of the
    program."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: dict[str, StreamConfig] = field(default_factory=dict)
    """Name of a stream -> its source of samples; objectives take their rows from a stream."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    objectives: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Module name in megaunigame/objectives -> its settings."""
    weights: dict[str, WeightConfig | None] = field(default_factory=dict)
    """Loss term -> factor on its weight by step, for example {depth: {start: 0.02, end: 1, steps: 100}}; null: none."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def given_weights(self) -> dict[str, WeightConfig]:
        """`weights` without those that an override has taken away."""
        return {term: weight for term, weight in self.weights.items() if weight is not None}

    def check(self, path: str) -> None:
        if not self.data:
            raise ConfigError("`data` names no stream. Give one, for example data.scenes.shards=shards/train.")
        if not self.objectives:
            raise ConfigError("`objectives` is empty. Give at least one, for example objectives.understanding.rows=4.")
        model, evaluation = self.model, self.evaluation
        if model.train == LORA and model.lora.dora and self.engine.precision == BF16:
            raise ConfigError(
                "model.lora.dora=true needs engine.precision=fp32; got bf16, which rounds the lengths of the rows: changes "
                "below 0.4 % would have no effect in the run, and an export would be another model. Type "
                "engine.precision=fp32, or model.lora.dora=false."
            )
        if self.loader.balance and not model.pack_tokens:
            raise ConfigError(
                "loader.balance=true needs rows that are packed: side by side, an empty place costs as much as a row. Type "
                f"model.pack_tokens=N, at least model.max_length={model.max_length}, or loader.balance=false."
            )
        if self.engine.sequence_ranks > 1 and self.loader.lost_shard == SUBSTITUTE:
            raise ConfigError(
                f"engine.sequence_ranks={self.engine.sequence_ranks}: ranks that share rows must all read them, and with "
                f"loader.lost_shard={SUBSTITUTE} one goes on without a shard that it cannot reach. Type "
                f"loader.lost_shard={STOP}, or engine.sequence_ranks=1."
            )
        if self.engine.sequence_ranks > 1 and not model.pack_tokens:
            raise ConfigError(
                f"engine.sequence_ranks={self.engine.sequence_ranks} divides packed rows. Type "
                f"model.pack_tokens={model.max_length} or more, or engine.sequence_ranks=1."
            )
        if self.engine.sequence_ranks > 1 and self.evaluation.gather == TENSOR_PARALLEL:
            raise ConfigError(
                f"evaluation.gather={TENSOR_PARALLEL} divides a model over ranks that draw together, but with "
                f"engine.sequence_ranks={self.engine.sequence_ranks} ranks share rows already. Type evaluation.gather={AUTO}, "
                "or engine.sequence_ranks=1."
            )
        for name, given in self.objectives.items():
            if model.attention in FLASH and given and given.get("independent"):
                raise ConfigError(
                    f"objectives.{name}.independent=true needs a mask, and model.attention={model.attention} takes none. Type "
                    f"model.attention=sdpa, or objectives.{name}.independent=false."
                )
        if evaluation.weights == EMA and not self.ema.decay:
            raise ConfigError("evaluation.weights=ema needs an average of the weights. Type ema.decay=0.999, for example.")
        metrics = {"checkpoint.best.metric": self.checkpoint.best.metric, "early_stop.metric": self.early_stop.metric}
        for key, metric in metrics.items():
            check_metric(key, metric, evaluation.suites, before=evaluation.before, every=evaluation.every)
        for term, weight in self.given_weights.items():
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
    recipe = fill(Recipe, read(path, overrides, "recipe", RECIPES), "")
    use_plugins(recipe.plugins)
    return recipe


def resolve_batch(batch: BatchConfig, rows_per_micro_step: int, data_ranks: int, sequence_ranks: int = 1) -> int:
    """Micro-steps per optimizer step. The triple must multiply: global_rows = rows x accumulation x data ranks.

    `sequence_ranks`: of which each data rank consists.
    """
    check_values(batch, "batch")
    unit = rows_per_micro_step * data_ranks
    ranks = f"{data_ranks}" if sequence_ranks == 1 else f"{data_ranks} groups of {sequence_ranks}"
    if batch.global_rows is None:
        return 1 if batch.accumulation is None else batch.accumulation
    if batch.global_rows % unit:
        legal = [sequence_ranks * number for number in legal_ranks(batch.global_rows, rows_per_micro_step)]
        start = f"start one of these numbers of ranks: {', '.join(map(str, legal))}" if legal else "change the objectives' rows"
        raise ConfigError(
            f"batch.global_rows={batch.global_rows} is not a multiple of {unit} = {rows_per_micro_step} rows per micro-step "
            f"x {ranks} ranks. Type batch.global_rows={max(1, batch.global_rows // unit) * unit}, or {start}."
        )
    accumulation = batch.global_rows // unit
    if batch.accumulation not in (None, accumulation):
        raise ConfigError(
            f"The batch does not multiply: {rows_per_micro_step} rows x accumulation {batch.accumulation} x {ranks} ranks "
            f"= {unit * batch.accumulation}, but batch.global_rows={batch.global_rows}. "
            f"Type batch.accumulation={accumulation}, or leave one of the two out."
        )
    return accumulation


def legal_ranks(global_rows: int, rows_per_micro_step: int) -> list[int]:
    """Numbers of ranks that can make a step of `global_rows` with some accumulation."""
    micro_steps, left = divmod(global_rows, rows_per_micro_step)
    return [] if left else [ranks for ranks in range(1, micro_steps + 1) if micro_steps % ranks == 0]


def by_key(recipe: Recipe) -> dict[str, str]:
    """Every setting of a resolved recipe, by its dotted key, as Python writes it."""
    return {key: repr(value) for key, value in values_by_key(as_container(recipe)).items()}


def as_container(recipe: Recipe) -> Any:
    """The resolved recipe as plain nested mappings."""
    return OmegaConf.to_container(OmegaConf.structured(recipe))


def values_by_key(settings: Any) -> dict[str, Any]:
    """The values in nested mappings by their dotted key; a list, and a mapping without entries, is a value."""

    def flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from flat(inner, f"{key}.{name}" if key else str(name))
        else:
            yield key, value

    return dict(flat(settings, ""))


def as_yaml(recipe: Recipe) -> str:
    """The resolved recipe, as written into the run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
