"""Settings of UniGame, with their checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megaunigame.adversary.base import Adversary
from megaunigame.errors import ConfigError
from megaunigame.judges.clip_filter import ClipConfig
from megaunigame.registry import find, unknown
from megaunigame.settings import above, at_least, half_open, one_of
from megaunigame.step.requests import FIT, SQUASH

MODES = ("alternating", "simultaneous")
PATHS = ("decoder", "embedding", "sampled")
ANCHORS = ("source", "none")
CONDITIONS = ("image", "caption")
OWN = "own"
SCHEDULES = ("constant", "follow")
SOURCES = ("stream", "clean")
DRAWS = ("remove", "keep")
HARDNESS = ("loss", "gap")


@dataclass
class BufferSettings:
    """The pool of hard pictures."""

    capacity: int = at_least(1, 4096)
    """Pictures over all ranks."""
    percentile: float = half_open(0, 100, 60.0)
    """Mined pictures enter when their loss reaches this percentile of those mined on all ranks since the last merge."""
    merge_every: int = at_least(1, 10)
    """Optimizer steps between merges."""
    max_age: int = at_least(0, 0)
    """Optimizer steps after which a picture leaves; 0: never."""
    temperature: float = above(0, 2.0)
    """Temperature of drawing by rank of loss: 2 (released code) draws the hardest few, large values draw evenly."""
    draw: str = one_of(DRAWS, "remove")
    """`remove`: a replayed picture leaves (released code); `keep`: it stays until harder ones displace it, or it is old."""
    hardness: str = one_of(HARDNESS, "loss")
    """`loss`: of the attacked picture (released code); `gap`: less that of the undisturbed picture, about which one more
    question is asked."""
    label_check: bool = False
    """Only pictures enter whose undisturbed picture is answered right, token by token, in all questions asked. For one short
    answer (`attack_turns: 1`): of a long one, or of many, hardly any model has every token right."""
    topk: int = at_least(0, 0)
    """Of the `sampling.candidates` of a source, at most so many enter, the hardest ones; 0: all."""

    @property
    def compares(self) -> bool:
        """Whether the learner is asked about the undisturbed pictures too."""
        return self.hardness == "gap" or self.label_check


@dataclass
class Penalties:
    """Penalties of the adversary, per row. It maximizes gain * loss - penalties."""

    l2: float = at_least(0, 1.0e-4)
    """On the mean square of the perturbation."""
    tv: float = at_least(0, 1.0e-5)
    """Total variation: on the mean squared difference of neighboring tokens."""
    gate: float = at_least(0, 0.0)
    """On sigmoid(gate)^2 of an adversary that learns its length: (eps / eps_max)^2 if eps_min is 0."""
    clip: float = at_least(0, 0.0)
    """Hinge: on max(tau - CLIP similarity, 0). Needs `clip`."""


@dataclass
class Sampling:
    """`path: sampled` only."""

    candidates: int = at_least(1, 1)
    """Pictures drawn per source."""
    guidance: float = 5.0
    """Scale of classifier-free guidance; 1: none."""
    temperature: float = at_least(0, 1.0)
    """0: the likeliest codes."""


@dataclass
class ControllerSettings:
    """Sets the length of perturbations by the share of codes that they flip. The learned length of a perturber is then off."""

    flipped: float = half_open(0, 1, 0.05)
    """Share of a picture's codes that an attack shall change."""
    rate: float = above(0, 0.2)
    """eps is multiplied by (wanted share / found share)^rate after every step that attacks, within the limits of the adversary;
    the quotient is kept within [.1, 10]."""

    def check(self, path: str) -> None:
        if self.flipped == 0:
            raise ConfigError(f"{path}.flipped=0 asks for attacks that change nothing. Type {path}.flipped=0.05.")


@dataclass
class Settings:
    """Defaults are the paper's; where the released code differs, the field says so."""

    clean_rows: int = at_least(0, 4)
    """Rows of ordinary fine-tuning, per micro-step and rank."""
    hard_rows: int = at_least(0, 1)
    """Rows replayed from the buffer."""
    attack_rows: int = at_least(0, 4)
    """Pictures attacked; 0: no game, only clean rows."""
    stream: str = "train"
    """Name of the stream in `data`."""
    beta: float = at_least(0, 0.5)
    """Weight of the hard rows in the learner's loss (of the adversarial rows too, when simultaneous)."""
    turns: int = at_least(0, 0)
    """At most this many question-answer pairs of a conversation in a clean row, drawn again each epoch; 0: all."""
    attack_turns: int | None = at_least(0, None)
    """Questions about an attacked picture, which is as hard as all of them together; none: as `turns`."""
    independent: bool = False
    """As in the objective `understanding`, for clean and attacked rows."""
    mode: str = one_of(MODES, "alternating")
    """`alternating`: the adversary moves, then the learner (the paper); `simultaneous`: both from one understand pass."""
    every: int = at_least(1, 1)
    """Attack in every n-th optimizer step."""
    path: str = "decoder"
    """`decoder`: perturbed post-LM tokens -> picture; `embedding`: perturbed input tokens, no picture; `sampled`: pictures
    drawn token by token (the released code, for comparing cost)."""
    anchor: str = one_of(ANCHORS, "source")
    """`source`: a position keeps the code of the source unless the perturbation changes the likeliest one; `none`: all
    redrawn."""
    condition: str = one_of(CONDITIONS, "image")
    """What the redrawn picture is conditioned on: the source `image`, or its `caption`."""
    prompts: list[str] = field(default_factory=lambda: ["draw this image again ."])
    """Condition `image`: one is drawn per attacked row, in the wording of the training."""
    geometry: str = one_of((FIT, SQUASH), FIT)
    """How an attacked picture becomes a square: whole in either case, so that it shows what its question is about."""
    redraw: str = OWN
    """`own`: a separate forward redraws the sources; or a generate term (`pixel`) whose rows redraw the same samples in the
    learner's pass, which the attack then reuses. Prompts, dropped conditions and LoRA dropout are then those of the term."""
    attack_on: str = one_of(SOURCES, "stream")
    """Whose pictures are attacked: `stream`: other samples of the stream; `clean`: those of the clean rows (released code)."""
    ratio: float = above(0, 250.0)
    """Learning rate of the adversary / learning rate of the learner."""
    schedule: str = one_of(SCHEDULES, "constant")
    """Rate of the adversary: `constant` (released code): ratio * optimizer.lr; `follow`: ratio * the scheduled rate."""
    gain: float = above(0, 120.0)
    """Weight of the answers' loss relative to the penalties."""
    clip_norm: float = above(0, 1.0)
    """Largest gradient norm of the adversary."""
    weight_decay: float = at_least(0, 0.0)
    """Of the adversary."""
    penalties: Penalties = field(default_factory=Penalties)
    adversary: dict[str, Any] = field(default_factory=lambda: {"kind": "perturber"})
    """`kind`: a module of megaunigame/adversary; the other keys are settings of that adversary."""
    controller: ControllerSettings | None = None
    """Sets eps by the flip rate; none: the adversary's own eps."""
    clip: ClipConfig | None = None
    """The CLIP filter; none: every picture is plausible."""
    buffer: BufferSettings = field(default_factory=BufferSettings)
    sampling: Sampling = field(default_factory=Sampling)
    pictures_every: int = at_least(0, 50)
    """A picture grid in every n-th step that attacks; 0: none."""
    pictures: int = at_least(0, 4)
    """Rows of a grid."""

    @property
    def most_filled(self) -> float:
        """Largest share of the hard rows that can have a picture in the long run: as many as enter, if replayed ones leave."""
        if not self.hard_rows or self.buffer.draw == "keep":
            return 1.0
        candidates = self.buffer.topk or self.sampling.candidates if self.path == "sampled" else 1
        entering = self.attack_rows * candidates * (1 - self.buffer.percentile / 100) / self.every
        return min(1.0, entering / self.hard_rows)

    def check(self, path: str) -> None:
        if self.path == "noise":
            raise ConfigError(f"{path}.path=noise: noise is an adversary, on any path. Type {path}.adversary.kind=noise.")
        if self.path not in PATHS:
            raise ConfigError(unknown(f"value of {path}.path", self.path, list(PATHS)))
        if self.hard_rows and not self.attack_rows:
            raise ConfigError(
                f"{path}.hard_rows={self.hard_rows} needs attacks to fill the buffer: give attack_rows, or hard_rows=0."
            )
        if self.mode == "simultaneous" and self.beta == 0:
            raise ConfigError(f"{path}.beta=0 leaves a simultaneous adversary without a loss; give beta above 0.")
        if self.mode == "simultaneous" and self.path == "sampled":
            raise ConfigError(
                f"{path}: path=sampled draws without gradient and cannot be simultaneous. Type {path}.mode=alternating."
            )
        if self.buffer.topk and self.path != "sampled":
            raise ConfigError(
                f"{path}.buffer.topk={self.buffer.topk}: only path=sampled has several candidates of a source. Type "
                f"{path}.buffer.topk=0."
            )
        if self.attack_on == "clean" and self.redraw != OWN:
            raise ConfigError(
                f"{path}.attack_on=clean: redraw={self.redraw} attacks the samples of that term. Type {path}.attack_on=stream, "
                f"or {path}.redraw=own."
            )
        if self.attack_on == "clean" and self.attack_rows not in (0, self.clean_rows):
            raise ConfigError(
                f"{path}.attack_on=clean attacks the {self.clean_rows} clean rows, and attack_rows={self.attack_rows}. Type "
                f"{path}.attack_rows={self.clean_rows}, or {path}.attack_on=stream."
            )
        if self.controller is not None and self.path != "decoder":
            raise ConfigError(
                f"{path}.controller: path={self.path} flips no codes that could be counted. Type {path}.path=decoder, or "
                f"{path}.controller=null."
            )
        if self.controller is not None and self.penalties.gate:
            raise ConfigError(
                f"{path}.penalties.gate={self.penalties.gate} has no effect when {path}.controller sets eps. Type "
                f"{path}.penalties.gate=0."
            )
        if self.redraw != OWN and self.path != "decoder":
            raise ConfigError(
                f"{path}.redraw={self.redraw}: path={self.path} does not read what the generate pass draws. "
                f"Type {path}.redraw=own, or {path}.path=decoder."
            )
        if self.condition == "image" and not self.prompts:
            raise ConfigError(f"{path}.prompts is empty; give at least one, in the wording the model was trained with.")
        if "kind" not in self.adversary:
            raise ConfigError(f"{path}.adversary names no kind. Type {path}.adversary.kind=perturber.")
        kind = self.adversary["kind"]
        if self.path == "sampled" and find("adversary", kind, Adversary).ascends:
            raise ConfigError(f"{path}: {kind} needs a gradient, which path=sampled does not have. Type {path}.path=decoder.")
        if self.penalties.clip and self.clip is None:
            raise ConfigError(f"{path}.penalties.clip needs the CLIP filter: give {path}.clip.pretrained.")
