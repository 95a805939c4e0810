"""Settings of AIA, with their checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from megaunigame.attention.targets import PASSES
from megaunigame.errors import ConfigError
from megaunigame.registry import unknown
from megaunigame.settings import above, at_least, one_of
from megaunigame.step.requests import GENERATE, UNDERSTAND

AUTO = "auto"
PRESETS = {"code": {GENERATE: 5.0, UNDERSTAND: 10.0}, "paper": {GENERATE: 40.0, UNDERSTAND: 40.0}, AUTO: {}}


@dataclass
class Settings:
    """Defaults are those of the released code; paper and code disagree about the weights."""

    preset: str = one_of(PRESETS, "code")
    """Weights: `code` 5 and 10 (generate, understand); `paper` 40; `auto`: measured once, so that the loss of a pass is
    `ratio` times its attention loss, then kept."""
    weights: dict[str, float] = at_least(0, dict)
    """Pass -> weight, in place of the preset's; 0 only measures."""
    ratio: float = above(0, 50.0)
    """`auto` only: loss of the pass / weighted attention loss. The paper's best of 1, 10, 50, 100."""
    calibration_steps: int = at_least(1, 10)
    """`auto` only: optimizer steps over which both are averaged, with weight 0."""
    warmup_steps: int = at_least(0, 0)
    """Optimizer steps over which the weights rise from 0; the method has none."""
    targets: str = "auto"
    """Table (`auto`, `janus_pro`, `emu3`, `relative`) or YAML file of (delta, target) by layer; `auto` is for the two models
    for which the paper has tables."""
    layers: list[int] = field(default_factory=list)
    """Layers in the loss, which is a mean over them; empty: all."""
    queries: int = at_least(0, 0)
    """At most this many queries of a row, drawn at random, for long sequences; 0: all."""
    terms: list[str] = field(default_factory=list)
    """Loss terms whose rows are in the attention loss; empty: all but those that draw from a source picture."""
    exclude_bos: bool = False
    """Exclude the first token (an attention sink) from the text that a picture attends to."""
    compat: bool = False
    """Use the sets of the released code, one position off, and its target in understanding layer 20."""

    def check(self, path: str) -> None:
        for name in self.weights:
            if name not in PASSES:
                raise ConfigError(unknown(f"pass in {path}.weights", name, list(PASSES)))
        if len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"{path}.layers names a layer twice: {self.layers}.")

    @property
    def given_weights(self) -> dict[str, float]:
        """Pass -> weight that need not be measured."""
        return PRESETS[self.preset] | self.weights
