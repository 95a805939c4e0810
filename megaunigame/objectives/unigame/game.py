"""Common parts of both modes of the game: adversary, penalties, updates, hard buffer, pictures for the report."""

from __future__ import annotations

import dataclasses
import logging
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megaunigame.adversary.base import Adversary
from megaunigame.adversary.optimizer import ReplicatedAdamW
from megaunigame.judges.clip import clip_elements
from megaunigame.judges.clip_filter import ClipFilter
from megaunigame.objectives.player import Context, Player
from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.attack import Attack, attack_of, question_of
from megaunigame.objectives.unigame.panels import attack_panels
from megaunigame.objectives.unigame.paths import AttackResult, Redraw, build_path
from megaunigame.objectives.unigame.pool import Pool
from megaunigame.objectives.unigame.reach import Reach
from megaunigame.objectives.unigame.redraw import redrawn_in
from megaunigame.objectives.unigame.resumed_settings import described
from megaunigame.objectives.unigame.saving import load_adversary, pending_adversary
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.objectives.unigame.undisturbed import Undisturbed
from megaunigame.pixels import Panel
from megaunigame.randomness import derive
from megaunigame.replay.hard_buffer import HardBuffer
from megaunigame.replay.records import RecordLayout
from megaunigame.step.inputs import GenerateOutput, PassOutput, UnderstandOutput, take_rows
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.storage.pending import PendingFile

log = logging.getLogger(__name__)

HARD, ADVERSARIAL = "hard", "adversarial"
PENALTY = "adversary_penalty"
"""Loss term: penalties of the adversary, mean over the attacked pictures of all ranks."""
PURPOSES = {"adversary": 1, "attack": 2, "harvest": 3, "draw": 4, "replay": 5}
"""Purpose of a random stream -> its number in the seed."""


@dataclass
class Round:
    """The game in one optimizer step."""

    drawn: list[np.ndarray]
    """Per micro-step: the records of the buffer that are replayed."""
    attacks: bool
    """Whether this step attacks."""
    gradients: list[Tensor]
    """Of the adversary's parameters, summed over micro-steps."""
    penalty: Tensor
    """() this rank's share of the penalties."""
    answer_tokens: Tensor | float = 1.0
    """Answer tokens asked about attacked pictures, over all ranks and micro-steps."""
    attacked_pictures: Tensor | float = 1.0
    """Attacked pictures, over all ranks and micro-steps."""
    shown: list[Panel] = field(default_factory=list)


class Game(Player):
    """The adversary, its buffer, and one round per optimizer step."""

    def __init__(
        self,
        config: Settings,
        redrawn_by: str | None,
        kind: type[Adversary],
        adversary_config: Any,
        clip: ClipFilter | None,
        context: Context,
    ):
        """`redrawn_by`: the learner's generate term that redraws the sources; None: the attack does."""
        self.config, self.redrawn_by, self.context = config, redrawn_by, context
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(context.seed, PURPOSES["adversary"]))  # the same initial adversary on every rank
            self.adversary = kind(adversary_config, context.model.token_width).to(context.data_ranks.device)
        self.parameters = list(self.adversary.parameters())
        self.optimizer = ReplicatedAdamW(self.parameters, clip=config.clip_norm, weight_decay=config.weight_decay)
        self.grad_norm = 0.0
        self.reach = Reach(config.controller, self.adversary, watched=config.path == "decoder")
        self.path = build_path(config, self.adversary)
        self.clip = clip
        if clip is not None:
            clip.to(context.data_ranks.device)
        layout = RecordLayout(context.model.processor.image_size, context.model.processor.max_length)
        candidates = config.attack_rows * (config.sampling.candidates if config.path == "sampled" else 1)
        buffer = HardBuffer(layout, config.buffer.capacity, candidates, context.data_ranks.rank, context.data_ranks.size)
        self.pool = Pool(config.buffer, buffer, clip, context)
        self.round = self._round([], False)
        self.rehearsed_every = config.every
        if config.path == "sampled":
            self.unplanned = "drawing pictures token by token and asking about them (path=sampled)"
        elif config.path == "embedding" and config.hard_rows:
            self.unplanned = "attacks on replayed rows (path=embedding)"

    def replicated_bytes(self) -> dict[str, int]:
        adversary = 16 * sum(p.numel() for p in self.parameters)  # with gradients and two moments, in float32
        if self.config.clip is None:
            return {"adversary": adversary}
        return {"adversary": adversary, "CLIP": 4 * clip_elements(self.config.clip.model)}

    def host_bytes(self) -> dict[str, int]:
        return {"hard buffer": self.pool.buffer.most_bytes}

    # The round

    @abstractmethod
    def attack(self, step: Step, micro: MicroStep, redrawn: Redraw | None) -> None:
        """Attack the sources of one micro-step; `redrawn` if the learner's own pass redrew them."""

    def before_learner(self, step: Step) -> None:
        attacks = step.number % self.config.every == 0
        drawn = self._put_hard_rows(step)
        self.round = self._round(drawn, attacks)
        counts = torch.stack([question_of(micro).counts for micro in step.micro_steps])
        filled = torch.tensor(float(sum(map(len, drawn))))
        local = torch.stack([filled, counts.sum(), (counts > 0).sum()])
        sums = self.context.data_ranks.all_reduce_sum(local.to(self.context.data_ranks.device))
        self.round.answer_tokens, self.round.attacked_pictures = sums[1:].clamp(min=1)
        if self.config.hard_rows:
            # Their loss is a mean over the rows that are there: a single one must not weigh as much as a full batch.
            asked = self.config.hard_rows * len(step.micro_steps) * self.context.data_ranks.size
            step.factors[HARD] = float(sums[0]) / asked

    def before_micro_step(self, step: Step, micro: MicroStep) -> None:
        if not self.config.hard_rows or self.config.path != "embedding":
            return
        at = micro.plan.rows_at(UNDERSTAND, HARD)
        stored = take_rows(micro.understand, at)
        with self.context.aside():
            rows = self.path.replay(self.context.model, stored, self._generator("replay", step.number, micro.number))
        micro.put(at, rows)
        step.passes += self.path.calls

    def after_pass(self, step: Step, micro: MicroStep, output: PassOutput) -> None:
        if isinstance(output, UnderstandOutput) and self.config.hard_rows:
            losses = output.loss_sum.detach() / micro.understand.counts.clamp(min=1)
            self.pool.refresh(self.round.drawn[micro.number], losses[micro.plan.rows_at(UNDERSTAND, HARD)])
        if isinstance(output, GenerateOutput) and self.redrawn_by is not None and self.round.attacks:
            self.attack(step, micro, redrawn_in(output, micro.plan.rows_at(GENERATE, self.redrawn_by)))

    def after_learner(self, step: Step) -> dict[str, float]:
        self.pool.collect()
        if (step.number + 1) % self.config.buffer.merge_every == 0:
            self.pool.merge(step.number)
        metrics = self.pool.metrics(step.number, self.round.attacks)
        if self.round.attacks:
            metrics[names.ADVERSARY_EPS] = self.adversary.eps.item()  # before a controller changes it for the next attack
            if self.adversary.learns:
                metrics |= {names.ADVERSARY_LR: self._lr(step), names.ADVERSARY_GRAD_NORM: self.grad_norm}
        if names.ADVERSARY_CHANGED_CODES in metrics:
            self.reach.note(metrics[names.ADVERSARY_CHANGED_CODES], is_main=self.context.data_ranks.is_main)
        return metrics

    def panels(self) -> list[Panel]:
        shown, self.round.shown = self.round.shown, []
        return shown

    def perturbed(self, attack: Attack, step: int, micro: int, redrawn: Redraw | None) -> AttackResult:
        """The attacked questions, called inside `aside`; differentiable with respect to an adversary that learns."""
        return self.path.attack(self.context.model, attack, self._generator("attack", step, micro), redrawn)

    def update(self, step: Step) -> None:
        """One step of the adversary, with the gradients of the round."""
        if not self.adversary.learns:
            return
        self.grad_norm = self.optimizer.step(self.round.gradients, self._lr(step), self.context.data_ranks)
        if not math.isfinite(self.grad_norm) and self.context.data_ranks.is_main:
            log.warning("The adversary's gradient of step %d is not finite; it was not updated.", step.number + 1)

    def penalty_share(self, attack: Attack, attacked: AttackResult) -> Tensor:
        """(): this rank's share of the penalties, a mean over the attacked pictures of all ranks."""
        rows = self.penalties(attack, attacked)
        return torch.where(attack.question.counts > 0, rows, 0.0).sum() / self.round.attacked_pictures

    def penalties(self, attack: Attack, attacked: AttackResult) -> Tensor:
        """(B,): the penalty of each attacked picture."""
        p, delta = self.config.penalties, attacked.delta
        rows = p.l2 * delta.square().mean((1, 2)) + p.tv * (delta[:, 1:] - delta[:, :-1]).square().mean((1, 2))
        rows = rows + p.gate * self.adversary.opening.square()
        if p.clip and self.clip is not None:
            rows = rows + p.clip * (self.clip.tau - self.pool.similarity(attack, attacked.pictures)).clamp(min=0)
        return rows

    def mine(
        self,
        step: Step,
        micro: MicroStep,
        attack: Attack,
        attacked: AttackResult,
        losses: Tensor,
        undisturbed: Undisturbed | None,
    ) -> Tensor:
        """Inside `aside`: offer the candidates of one micro-step, given loss sums (B,). Returns one per row, (B, 3, H, W)."""
        before = attacked.passes
        generator = self._generator("harvest", step.number, micro.number)
        pictures, sums = self.path.harvest(self.context.model, attack, attacked, losses, generator)
        step.passes += attacked.passes - before
        self.pool.mine(attack, attacked, pictures, sums, question_of(micro), step.number, undisturbed)
        return pictures[0]

    def show(self, step: Step, micro: MicroStep, attack: Attack, attacked: AttackResult, pictures: Tensor) -> None:
        """On every `pictures_every`-th step that attacks, pictures for the report. The same calls on every rank."""
        number = step.number // self.config.every + 1
        if micro.number == 0 and self.config.pictures_every and number % self.config.pictures_every == 0:
            with self.context.aside():  # entered again: its calls are not part of the passes around them
                panels = attack_panels(self.context.model, self.path, attack, attacked, pictures)
            self.round.shown = panels[: self.config.pictures]

    def _round(self, drawn: list[np.ndarray], attacks: bool) -> Round:
        nothing = torch.zeros((), device=self.context.data_ranks.device)
        return Round(drawn, attacks, [torch.zeros_like(p) for p in self.parameters], nothing)

    def attack_of(self, micro: MicroStep) -> Attack:
        """The attack of a micro-step, on the device of its inputs."""
        return attack_of(micro, self.redrawn_by, captioned=self.config.condition == "caption")

    def _lr(self, step: Step) -> float:
        return self.config.ratio * (step.peak_lr if self.config.schedule == "constant" else step.lr)

    def _put_hard_rows(self, step: Step) -> list[np.ndarray]:
        """Put records of this rank's buffer into the hard rows of every micro-step; the others stay dummies."""
        drawn = [np.zeros(0, np.int64)] * len(step.micro_steps)
        if not self.config.hard_rows:
            return drawn
        rng = np.random.default_rng([self.context.seed, step.number, self.context.data_ranks.rank, PURPOSES["draw"]])
        drawn = self.pool.draw(self.config.hard_rows, len(step.micro_steps), rng)
        for micro, records in zip(step.micro_steps, drawn, strict=True):
            if len(records):
                first = micro.plan.rows_at(UNDERSTAND, HARD).start
                at = slice(first, first + len(records))
                micro.put(at, self.pool.rows(records))
        return drawn

    def _generator(self, purpose: str, step: int, micro: int) -> torch.Generator:
        """Randomness of one attack, a function of seed, step, micro-step, rank and purpose."""
        data_ranks = self.context.data_ranks
        seed = derive(self.context.seed, step, micro, data_ranks.rank, PURPOSES[purpose])
        device = "cpu" if data_ranks.device.type == "meta" else data_ranks.device
        return torch.Generator(device).manual_seed(seed)

    # Rehearsal

    def rehearsed(self, micro: MicroStep) -> tuple[Attack, Redraw | None, GenerateOutput | None]:
        """The largest attack, on the device; what the learner's own pass has redrawn, and the output that holds its graph."""
        widest = self.context.plan.widest(GENERATE)
        at = None if self.redrawn_by is None else widest.rows_at(GENERATE, self.redrawn_by)
        attack = attack_of(micro, self.redrawn_by, captioned=self.config.condition == "caption", at=at)
        output = None if at is None else self.context.model(dataclasses.replace(micro.generate, taps=None))
        redrawn = None if at is None or output is None else redrawn_in(output, at)
        return attack.to(self.context.data_ranks.device), redrawn, output

    # Checkpoints

    def pending(self) -> list[PendingFile]:
        data_ranks = self.context.data_ranks
        files = [self.pool.buffer.pending()] if data_ranks.writes else []
        if data_ranks.is_main:
            state = {"pool": self.pool.state_dict(), "reach": self.reach.state_dict()}
            settings = described(self.config, self.adversary)
            files.append(pending_adversary(self.adversary, self.optimizer, settings, state))
        return files

    def load(self, folder: Path) -> None:
        settings = described(self.config, self.adversary)
        state, changed = load_adversary(folder, self.adversary, self.optimizer, settings)
        if changed and self.context.data_ranks.is_main:
            log.warning("The game goes on with other settings than in %s: %s.", folder, "; ".join(changed))
        self.pool.buffer.load(folder)  # first: it knows files of other versions
        self.pool.load_state_dict(state["pool"])
        self.reach.load_state_dict(state["reach"])
