"""Settings of the model: its folder, its initial weights, what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from megaunigame.errors import ConfigError
from megaunigame.settings import above, half_open, one_of

PARTIAL, OFF = "partial", "off"
"""Uses of stored codes, next to `auto`."""
PRETRAINED, RANDOM = "pretrained", "random"
"""Initial weights of a run."""


@dataclass
class LoraConfig:
    rank: int = above(0, 16)
    alpha: float = 32.0
    dropout: float = half_open(0, 1, 0.05)
    targets: list[str] = field(default_factory=list)
    """Names of linear layers of the language model, such as `q_proj`; none: all of them."""


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
    launch/plan.py without a folder at `path`. Next to a folder with weights it is not used, but must be a known name."""
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
    """Longest sequence of a row, in tokens, image tokens included. Above `max_position_embeddings` of the model a run warns."""
    gradient_checkpointing: bool = False
    stored_codes: str = one_of(["auto", PARTIAL, OFF], "auto")
    """Codes in the shards (`data_prep annotate --tasks codes`), in families whose pictures are codes. `auto`: used where a
    sample has them; those of another tokenizer, geometry or side end the run. `partial`: pictures whose codes were stored for
    other geometries or sides are encoded in the pass. `off`: every picture is."""

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
        if self.weights_from and self.weights == RANDOM:
            raise ConfigError(f"{path}.weights_from names weights, and {path}.weights is {RANDOM}. Give one of the two.")
        if self.adapter and self.train != "lora":
            raise ConfigError(
                f"{path}.adapter={self.adapter} needs {path}.train=lora; got {path}.train={self.train}. To train all weights "
                f"on top of adapters, export their run merged (without --adapter) and give that folder in {path}.weights_from."
            )
