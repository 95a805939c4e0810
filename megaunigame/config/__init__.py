"""The recipe: one YAML file, dotted overrides, strict dataclasses. One file per part; what others import is named here."""

from megaunigame.config.data import CacheConfig, LoaderConfig, MixedConfig, StreamConfig
from megaunigame.config.model import OFF, PARTIAL, PRETRAINED, RANDOM, LoraConfig, ModelConfig
from megaunigame.config.recipe import Recipe, as_yaml, legal_ranks, load_recipe, resolve_batch
from megaunigame.config.run import (
    AUTO,
    COSINE,
    LINEAR,
    SKIP,
    WARN,
    BatchConfig,
    CheckpointConfig,
    DivergenceConfig,
    EngineConfig,
    EvaluationConfig,
    MonitorConfig,
    OptimizerConfig,
    ScheduleConfig,
    WeightConfig,
)

__all__ = [
    "CacheConfig",
    "LoaderConfig",
    "MixedConfig",
    "StreamConfig",
    "OFF",
    "PARTIAL",
    "PRETRAINED",
    "RANDOM",
    "LoraConfig",
    "ModelConfig",
    "Recipe",
    "as_yaml",
    "legal_ranks",
    "load_recipe",
    "resolve_batch",
    "AUTO",
    "COSINE",
    "LINEAR",
    "SKIP",
    "WARN",
    "BatchConfig",
    "CheckpointConfig",
    "DivergenceConfig",
    "EngineConfig",
    "EvaluationConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "WeightConfig",
]
