"""Settings of the model: its folder, its initial weights, what is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from megaunigame.config.run import AUTO
from megaunigame.errors import ConfigError
from megaunigame.settings import above, at_least, half_open, one_of

PARTIAL, OFF = "partial", "off"
"""Uses of stored codes, next to `auto`."""
EAGER = "eager"
"""Attention that computes whole maps."""
FLASH = ("flash_attention_2", "flash_attention_3")
"""Attention that takes no mask."""
PRETRAINED, RANDOM = "pretrained", "random"
"""Initial weights of a run."""
LORA, FULL = "lora", "full"
"""What is trained."""
QUANTIZED = (
    "ZeRO-3 cannot divide quantized weights over the ranks (docs/training.md). Its slices of bf16 weights take the same room "
    "on 4 ranks as 4-bit weights that each rank holds whole."
)


@dataclass
class LoraConfig:
    rank: int = above(0, 16)
    """Width of each adapter."""
    alpha: float = 32.0
    """Adapters add scale x B A to a weight, with scale = alpha / rank."""
    rslora: bool = False
    """rsLoRA: scale = alpha / sqrt(rank), so that a larger rank does not learn more slowly (Kalajdzievski 2023)."""
    dora: bool = False
    """DoRA: W + scale x B A is normalized to rows of length 1, and their lengths are trained too (Liu et al. 2024). Every pass
    computes that matrix and its norms again. Needs `engine.precision: fp32`."""
    dropout: float = half_open(0, 1, 0.05)
    """Of the input of the adapters, in training."""
    targets: list[str] = field(default_factory=list)
    """Names of linear layers of the language model, such as `q_proj`; none: all of them."""

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


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
    megaunigame plan without a folder at `path`. Next to a folder with weights it is not used, but must be a known name."""
    weights_from: str = ""
    """Begin with the weights of another run (its folder, or one of its step folders) or of an exported folder, in place of
    those in `path`, whose configuration, processor and frozen tokenizer stay. Fixed when the run begins."""
    adapter: str = ""
    """Begin with the adapters of this folder (`megaunigame export --adapter`) in place of fresh ones; needs `train: lora`."""
    train: str = one_of([LORA, FULL], LORA, {"qlora": f"{QUANTIZED} Type lora."})
    """`lora`: adapters in the language model; `full`: the groups below."""
    groups: list[str] = field(default_factory=list)
    """Groups trained in `full`; empty: the family's default. A wrong name is an error that lists the family's groups."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: str = one_of(["sdpa", EAGER, *FLASH, AUTO], "sdpa")
    """Implementation of attention in the language model; `flash_attention_2` needs a GPU and the package flash-attn,
    `flash_attention_3` a Hopper GPU and flash-attn-3. `auto`: what fits the run, which a line at the start names with
    the reason."""
    max_length: int = above(0, 2048)
    """Longest sequence of a row, in tokens, image tokens included. Above `max_position_embeddings` of the model a run warns."""
    pack_tokens: int = at_least(0, 0)
    """0: the language model reads the rows of a pass side by side, padded to the longest. Above 0: one after another, without
    padding, each attending to itself alone. Plans and the dry run then count on passes of this many tokens, at least
    `max_length`; one that has more is made as well, and a line says so."""
    gradient_checkpointing: bool = False
    """Compute the activations of each layer again in the backward: less memory, more time."""
    stored_codes: str = one_of([AUTO, PARTIAL, OFF], AUTO)
    """Codes in the shards (`data_prep annotate --tasks codes`), in families whose pictures are codes. `auto`: used where a
    sample has them; those of another tokenizer, geometry or side end the run. `partial`: pictures whose codes were stored for
    other geometries or sides are encoded in the pass. `off`: every picture is."""

    unsupported: ClassVar[dict[str, str]] = dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization"),
        f"{QUANTIZED} Leave it out.",
    )
    """Keys that a reader looks for here -> why there is no such setting."""

    def __post_init__(self) -> None:
        if self.stored_codes == str(False):  # YAML reads `off` as a boolean, and a setting that is a text makes this of it
            self.stored_codes = OFF

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
        if 0 < self.pack_tokens < self.max_length:
            raise ConfigError(
                f"{path}.pack_tokens={self.pack_tokens} cannot hold the longest row, of "
                f"{path}.max_length={self.max_length} tokens. Type {path}.pack_tokens={self.max_length} or more, or 0 for "
                "padded rows."
            )
        if self.pack_tokens and self.attention == EAGER:
            raise ConfigError(
                f"{path}.pack_tokens={self.pack_tokens} needs {path}.attention=sdpa or flash_attention_2: eager "
                f"attention computes whole maps. Type {path}.attention=sdpa, or {path}.pack_tokens=0."
            )
        if self.weights_from and self.weights == RANDOM:
            raise ConfigError(f"{path}.weights_from names weights, and {path}.weights is {RANDOM}. Give one of the two.")
        if self.adapter and self.train != LORA:
            raise ConfigError(
                f"{path}.adapter={self.adapter} needs {path}.train=lora; got {path}.train={self.train}. To train all weights "
                f"on top of adapters, export their run merged (without --adapter) and give that folder in {path}.weights_from."
            )
