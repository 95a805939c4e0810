"""The settings of UniGame, and what is legal among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megaunigame.errors import ConfigError
from megaunigame.registry import unknown

MODES = ("alternating", "simultaneous")
PATHS = ("decoder", "embedding", "sampled")
ANCHORS = ("source", "none")
CONDITIONS = ("image", "caption")
OWN = "own"


@dataclass
class BufferSettings:
    """The pool of hard pictures."""

    capacity: int = 4096
    """Pictures over all ranks."""
    percentile: float = 60.0
    """Mined pictures enter when their loss reaches this percentile of those mined on all ranks since the last merge."""
    merge_every: int = 10
    """Optimizer steps between merges."""
    max_age: int = 0
    """Optimizer steps after which a picture leaves; 0: never."""
    temperature: float = 2.0
    """Of drawing by rank of hardness: 2 (released code) draws the hardest few, large values draw evenly."""

    def check(self) -> None:
        if self.capacity < 1 or self.merge_every < 1 or self.max_age < 0 or self.temperature <= 0:
            raise ConfigError(
                "objectives.unigame.buffer: capacity and merge_every must be at least 1, max_age at least 0, temperature above "
                f"0; got {self.capacity}, {self.merge_every}, {self.max_age}, {self.temperature}."
            )
        if not 0 <= self.percentile < 100:
            raise ConfigError(f"objectives.unigame.buffer.percentile must lie in [0, 100); got {self.percentile}. Usual: 60.")


@dataclass
class Penalties:
    """What the adversary pays, per row. The adversary maximises gain * loss - penalties."""

    l2: float = 1.0e-4
    """On the mean square of the perturbation."""
    tv: float = 1.0e-5
    """Total variation: on the mean squared difference of neighbouring tokens."""
    gate: float = 0.0
    """On (eps / eps_max)^2."""
    clip: float = 0.0
    """Hinge: on max(tau - CLIP similarity, 0). Needs `clip`."""

    def check(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ConfigError(f"objectives.unigame.penalties.{name} must be 0 or more; got {value:g}.")


@dataclass
class Sampling:
    """`path: sampled` only."""

    candidates: int = 1
    """Pictures drawn per source."""
    guidance: float = 5.0
    temperature: float = 1.0


@dataclass
class Settings:
    """Defaults are the paper's; where paper and released code disagree, see each one."""

    clean_rows: int = 4
    """Rows of ordinary fine-tuning, per micro-step and rank."""
    hard_rows: int = 2
    """Rows replayed from the buffer."""
    attack_rows: int = 4
    """Pictures attacked; 0: no game, only clean rows."""
    stream: str = "train"
    beta: float = 0.5
    """Weight of the hard rows in the learner's loss (of the adversarial rows too, when simultaneous)."""
    turns: int = 0
    independent: bool = False
    """As in the objective `understanding`, for clean and attacked rows."""
    mode: str = "alternating"
    """`alternating`: the adversary moves, then the learner (the paper); `simultaneous`: both from one understand pass."""
    every: int = 1
    """Optimizer steps from one attack to the next."""
    path: str = "decoder"
    """`decoder`: perturbed post-LM tokens -> picture; `embedding`: perturbed input tokens, no picture; `sampled`: pictures
    drawn token by token (the released code, for comparing cost)."""
    anchor: str = "source"
    """`source`: a place keeps the code of the source unless the perturbation changes the likeliest one; `none`: all redrawn."""
    condition: str = "image"
    """What the redrawn picture is conditioned on: the source `image`, or its `caption`."""
    prompts: list[str] = field(default_factory=lambda: ["draw this image again ."])
    """Condition `image`: one is drawn per attacked row. Use the wording the model knows."""
    redraw: str = OWN
    """`own`: a forward of its own redraws the sources; or a generate term (`pixel`) whose rows draw the same samples in the
    learner's pass, which the attack then reuses. Prompts, dropped conditions and LoRA dropout are then those of the term."""
    ratio: float = 250.0
    """Learning rate of the adversary over that of the learner."""
    gain: float = 120.0
    """Weight of the answers' loss against the penalties."""
    clip_norm: float = 1.0
    """Largest gradient norm of the adversary."""
    weight_decay: float = 0.0
    """Of the adversary."""
    penalties: Penalties = field(default_factory=Penalties)
    adversary: dict[str, Any] = field(default_factory=lambda: {"kind": "perturber"})
    """`kind`: a module of megaunigame/adversary; beside it the settings of that adversary."""
    clip: dict[str, Any] | None = None
    """Settings of the CLIP filter (`pretrained`, `model`, `compare`, `tau`); none: every picture is plausible."""
    buffer: BufferSettings = field(default_factory=BufferSettings)
    sampling: Sampling = field(default_factory=Sampling)
    pictures_every: int = 50
    """Attacking steps between picture grids of the report, the last of each has one; 0: none."""
    pictures: int = 4
    """Rows of a grid."""

    def check(self) -> None:
        """Raises ConfigError for what the types allow and the game does not."""
        where = "objectives.unigame"
        choices = {"mode": MODES, "path": PATHS, "anchor": ANCHORS, "condition": CONDITIONS}
        for name, legal in choices.items():
            got = getattr(self, name)
            if name == "path" and got == "noise":
                raise ConfigError(f"{where}.path=noise: noise is an adversary, on any path. Type {where}.adversary.kind=noise.")
            if got not in legal:
                raise ConfigError(unknown(f"value of {where}.{name}", got, list(legal)))
        counts = {"turns": 0, "clean_rows": 0, "hard_rows": 0, "attack_rows": 0, "every": 1, "pictures": 0, "pictures_every": 0}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{where}.{name} must be at least {least}; got {getattr(self, name)}.")
        if self.hard_rows and not self.attack_rows:
            raise ConfigError(
                f"{where}.hard_rows={self.hard_rows} needs attacks to fill the buffer: give attack_rows, or hard_rows=0."
            )
        for name in ("beta", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{where}.{name} must be 0 or more; got {getattr(self, name):g}.")
        for name in ("ratio", "gain", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{where}.{name} must be greater than 0; got {getattr(self, name):g}.")
        if self.mode == "simultaneous" and self.beta == 0:
            raise ConfigError(f"{where}.beta=0 leaves a simultaneous adversary without a loss; give beta above 0.")
        if self.mode == "simultaneous" and self.path == "sampled":
            raise ConfigError(
                f"{where}: path=sampled draws without gradient and cannot be simultaneous. Type {where}.mode=alternating."
            )
        if self.redraw != OWN and self.path != "decoder":
            raise ConfigError(
                f"{where}.redraw={self.redraw}: path={self.path} does not read what the generate pass draws. "
                f"Type {where}.redraw=own, or {where}.path=decoder."
            )
        if self.path == "sampled" and (self.sampling.candidates < 1 or self.sampling.temperature < 0):
            raise ConfigError(f"{where}.sampling: candidates must be at least 1, temperature 0 or more.")
        if self.condition == "image" and not self.prompts:
            raise ConfigError(f"{where}.prompts is empty; give at least one, in the wording the model was trained with.")
        if "kind" not in self.adversary:
            raise ConfigError(f"{where}.adversary names no kind. Type {where}.adversary.kind=perturber.")
        if self.path == "sampled" and self.adversary["kind"] == "pgd":
            raise ConfigError(f"{where}: pgd needs a gradient, which path=sampled has not. Type {where}.path=decoder.")
        if self.penalties.clip and self.clip is None:
            raise ConfigError(f"{where}.penalties.clip needs the CLIP filter: give {where}.clip.pretrained.")
        self.penalties.check()
        self.buffer.check()
