"""Where the perturbation enters, and what the learner sees of it.

    decoder    h = post-LM tokens of the source, teacher forced;  x = decode(h + delta);  loss = CE(answer | x, question)
    embedding  v = visual tokens of the source;                                          loss = CE(answer | v + delta, question)
    sampled    the embedding path for the adversary's loss; the pictures are drawn token by token, delta on every embedding

One forward through the language model gives h, or none if the learner's own generate pass redrew the source. The same
picture is used for the adversary's gradient, the CLIP filter and the buffer. The released code draws its pictures
separately: that is the third path.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from megaunigame.adversary.base import Adversary
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.settings import Sampling, Settings
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs, with_images


class Redraw(NamedTuple):
    """Output of the generate pass for the source pictures, teacher forced; without gradient."""

    hidden: Tensor
    """(B, N, D) post-LM tokens."""
    target: Tensor
    """Codes (B, N) or latents."""


@dataclass
class AttackResult:
    """Result of an attack on one micro-batch. `question` and `delta` are differentiable with respect to the adversary."""

    question: UnderstandInputs
    """The conversation about the adversarial picture."""
    delta: Tensor
    """(B, N, D) float32."""
    changed: Tensor
    """(B,) fraction of the picture's codes that the perturbation changed; 0 on paths without codes."""
    pictures: Tensor
    """(B, 3, H, W) in [-1, 1]: what the learner sees; differentiable on the decoder path."""
    passes: int
    """Forwards through the language model."""
    redrawn: Redraw | None = None
    """What was perturbed, on the decoder path."""


class AttackPath(ABC):
    """Turns sources into attacked questions. Called inside `aside`."""

    def __init__(self, adversary: Adversary):
        self.adversary = adversary
        self.calls = 0
        """Forwards that the adversary itself made in the current attack."""

    @abstractmethod
    def attack(
        self, model: UnifiedModel, attack: Attack, generator: torch.Generator, redrawn: Redraw | None = None
    ) -> AttackResult:
        """Attack the source pictures of one micro-batch; `redrawn` if the learner's own pass redrew them."""

    def unperturbed(self, model: UnifiedModel, attack: Attack, attacked: AttackResult) -> Tensor:
        """(B, 3, H, W) in [-1, 1]: the pictures without a perturbation."""
        return attack.redraw.targets

    def plain(self, model: UnifiedModel, attack: Attack, attacked: AttackResult) -> UnderstandInputs:
        """The questions without a perturbation, without gradient."""
        return attack.question

    def replay(self, model: UnifiedModel, question: UnderstandInputs, generator: torch.Generator) -> UnderstandInputs:
        """Questions about stored pictures, as the learner sees them."""
        return question

    def harvest(
        self, model: UnifiedModel, attack: Attack, attacked: AttackResult, losses: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Candidates for the buffer: pictures (K, B, 3, H, W) in [-1, 1] and loss sums (K, B); most paths have K = 1."""
        return attacked.pictures.detach().unsqueeze(0), losses.detach().unsqueeze(0)

    def _perturb(
        self, model: UnifiedModel, tokens: Tensor, about_delta: Callable[[Tensor], UnderstandInputs], generator: torch.Generator
    ) -> Tensor:
        def ascend(delta: Tensor) -> Tensor:
            self.calls += 1
            return model(about_delta(delta)).loss_sum

        self.calls = 0
        return self.adversary.perturb(tokens, ascend, generator)


class DecoderPath(AttackPath):
    """Through the generation head and the image decoder."""

    def __init__(self, adversary: Adversary, anchored: bool):
        super().__init__(adversary)
        self.anchored = anchored

    def attack(
        self, model: UnifiedModel, attack: Attack, generator: torch.Generator, redrawn: Redraw | None = None
    ) -> AttackResult:
        passes = 0
        if redrawn is None:
            with torch.no_grad():
                seen = model(attack.redraw)
            redrawn, passes = Redraw(seen.hidden, seen.target), 1
        hidden, anchor = redrawn.hidden, self._anchor(redrawn)

        def about_delta(delta: Tensor) -> UnderstandInputs:
            return about(model, attack.question, model.decode(hidden, delta, anchor).pixels)

        delta = self._perturb(model, hidden.float(), about_delta, generator)
        decoded = model.decode(hidden, delta, anchor)
        question = about(model, attack.question, decoded.pixels)
        return AttackResult(question, delta, decoded.changed, decoded.pixels, passes + self.calls, redrawn)

    def unperturbed(self, model: UnifiedModel, attack: Attack, attacked: AttackResult) -> Tensor:
        assert attacked.redrawn is not None
        if self.anchored:  # without a perturbation every position keeps its target
            return model.decode_target(attacked.redrawn.target)
        return model.decode(attacked.redrawn.hidden).pixels

    def plain(self, model: UnifiedModel, attack: Attack, attacked: AttackResult) -> UnderstandInputs:
        with torch.no_grad():
            return about(model, attack.question, self.unperturbed(model, attack, attacked))

    def _anchor(self, redrawn: Redraw) -> Tensor | None:
        return redrawn.target if self.anchored else None


class EmbeddingPath(AttackPath):
    """On the tokens the language model reads. No picture shows it: the buffer keeps sources, attacked again on replay."""

    def attack(
        self, model: UnifiedModel, attack: Attack, generator: torch.Generator, redrawn: Redraw | None = None
    ) -> AttackResult:
        question, delta = self._perturb_question(model, attack.question, generator)
        unchanged = delta.new_zeros(len(delta))
        return AttackResult(question, delta, unchanged, attack.redraw.targets, passes=self.calls)

    def replay(self, model: UnifiedModel, question: UnderstandInputs, generator: torch.Generator) -> UnderstandInputs:
        attacked, _ = self._perturb_question(model, question, generator)
        assert attacked.visual_delta is not None
        return dataclasses.replace(attacked, visual_delta=attacked.visual_delta.detach())

    def _perturb_question(
        self, model: UnifiedModel, question: UnderstandInputs, generator: torch.Generator
    ) -> tuple[UnderstandInputs, Tensor]:
        """The question with a perturbation, and the perturbation as (B, N, D)."""
        with torch.no_grad():
            tokens = model.visual_tokens(question.images).float()

        def about_delta(delta: Tensor) -> UnderstandInputs:
            return dataclasses.replace(question, visual_delta=delta.unflatten(1, tokens.shape[1:3]))

        delta = self._perturb(model, tokens.flatten(1, 2), about_delta, generator)
        return about_delta(delta), delta


class PerturbedSampler(Protocol):
    """A family that can perturb what it reads while it draws; `sampled` needs one."""

    def sample(
        self,
        inputs: GenerateInputs,
        *,
        guidance: float,
        temperature: float,
        generator: torch.Generator,
        perturb: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """As `UnifiedModel.sample`; `perturb` maps an embedding (B, 1, D) or hidden states (B, N, D) to what is added."""
        ...


class SampledPath(EmbeddingPath):
    """The released procedure, kept to compare its cost: pictures are drawn token by token, without gradient."""

    def __init__(self, adversary: Adversary, sampling: Sampling):
        super().__init__(adversary)
        self.sampling = sampling

    def replay(self, model: UnifiedModel, question: UnderstandInputs, generator: torch.Generator) -> UnderstandInputs:
        return question  # the buffer holds attacked pictures already

    def harvest(
        self, model: UnifiedModel, attack: Attack, attacked: AttackResult, losses: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        drawn: list[Tensor] = []
        sums: list[Tensor] = []

        def perturb(embedding: Tensor) -> Tensor:
            return self._perturb(model, embedding.float(), lambda delta: attack.question, generator)

        sampler = cast(PerturbedSampler, model)
        with torch.no_grad():
            for _ in range(self.sampling.candidates):
                pixels = sampler.sample(
                    attack.redraw,
                    guidance=self.sampling.guidance,
                    temperature=self.sampling.temperature,
                    generator=generator,
                    perturb=perturb,
                )
                drawn.append(pixels)
                sums.append(model(about(model, attack.question, pixels)).loss_sum)
                attacked.passes += 1 + model.calls_per_sample
        attacked.question = about(model, attack.question, drawn[0])
        return torch.stack(drawn), torch.stack(sums)


def lacks(family: type[UnifiedModel], path: str) -> str:
    """What a family would need for a path and does not have; empty: nothing."""
    if path != "embedding" and not family.has_decoder:
        return "differentiable decoder"
    if path == "sampled" and "perturb" not in inspect.signature(family.sample).parameters:
        return "`sample` with `perturb`"
    return ""


def about(model: UnifiedModel, question: UnderstandInputs, pixels: Tensor) -> UnderstandInputs:
    """The question about other pictures (B, 3, H, W) in [-1, 1], one per row; differentiable with respect to them."""
    return with_images(question, model.as_source(pixels).unsqueeze(1))


def build_path(settings: Settings, adversary: Adversary) -> AttackPath:
    if settings.path == "decoder":
        return DecoderPath(adversary, anchored=settings.anchor == "source")
    if settings.path == "embedding":
        return EmbeddingPath(adversary)
    return SampledPath(adversary, settings.sampling)
