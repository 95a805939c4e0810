"""Simultaneous: attacked rows join the learner's understand pass; the adversary receives their gradient reversed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megaunigame.objectives.unigame.attack import Attack, question_of
from megaunigame.objectives.unigame.game import ADVERSARIAL, PENALTY, Game
from megaunigame.objectives.unigame.paths import AttackResult, Redraw
from megaunigame.objectives.unigame.reversal import reverse_gradient
from megaunigame.objectives.unigame.undisturbed import Undisturbed, ask
from megaunigame.step.inputs import PassOutput, UnderstandOutput
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import UNDERSTAND


class Simultaneous(Game):
    """One backward for learner and adversary."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.losses = (PENALTY,) if self.adversary.learns else ()
        self.joined: tuple[Attack, AttackResult] | None = None
        """The attack whose rows are in the current micro-step."""

    def rehearse(self, micro: MicroStep) -> Sequence[Tensor]:
        attack, redrawn, _held = self.rehearsed(micro)  # the graph of the learner's pass stays in memory
        with self.context.aside(), torch.set_grad_enabled(self.adversary.learns):
            attacked = self.perturbed(attack, 0, 0, redrawn)
            penalty = self.penalties(attack, attacked).sum()
            self.undisturbed(attack, attacked)
        self.pool.buffer.rehearse(self.context.data_ranks)
        at = self.context.plan.widest(UNDERSTAND).rows_at(UNDERSTAND, ADVERSARIAL)
        micro.put(at, reverse_gradient(attacked.question, 1.0))
        if not self.adversary.learns:
            return ()
        micro.losses[PENALTY] = penalty
        return self.parameters

    def before_learner(self, step: Step) -> None:
        super().before_learner(step)
        if self.round.attacks:
            for micro in step.micro_steps:
                at = micro.plan.rows_at(UNDERSTAND, ADVERSARIAL)  # replaced by the attacked rows
                micro.put(at, question_of(micro))

    def before_micro_step(self, step: Step, micro: MicroStep) -> None:
        super().before_micro_step(step, micro)
        if self.redrawn_by is None and self.round.attacks:
            self.attack(step, micro, None)

    def attack(self, step: Step, micro: MicroStep, redrawn: Redraw | None) -> None:
        """Put the attacked rows of one micro-step among the learner's, and the penalty among its losses."""
        attack = self.attack_of(micro).to(self.context.data_ranks.device)
        with self.context.aside(), torch.set_grad_enabled(self.adversary.learns):
            attacked = self.perturbed(attack, step.number, micro.number, redrawn)
        self.joined = attack, attacked
        step.passes += attacked.passes
        weight = self.config.beta * step.factors.get(ADVERSARIAL, 1.0)  # of these rows in the learner's loss
        rows = reverse_gradient(attacked.question, self.config.gain / weight if weight else 0.0)
        at = micro.plan.rows_at(UNDERSTAND, ADVERSARIAL)
        micro.put(at, rows)
        if self.adversary.learns:
            micro.losses[PENALTY] = self.penalty_share(attack, attacked)

    def after_pass(self, step: Step, micro: MicroStep, output: PassOutput) -> None:
        super().after_pass(step, micro, output)
        if isinstance(output, UnderstandOutput) and self.joined is not None:
            attack, attacked = self.joined
            self.joined = None
            losses = output.loss_sum.detach()[micro.plan.rows_at(UNDERSTAND, ADVERSARIAL)]
            with self.context.aside():
                undisturbed = self.undisturbed(attack, attacked)
                step.passes += undisturbed is not None
                pictures = self.mine(step, micro, attack, attacked, losses, undisturbed)
            self.show(step, micro, attack, attacked, pictures)

    def undisturbed(self, attack: Attack, attacked: AttackResult) -> Undisturbed | None:
        """Inside `aside`, where the pool compares: in a separate pass, because the learner's has no rows for them."""
        if not self.config.buffer.compares:
            return None
        return ask(self.context.model, self.path.plain(self.context.model, attack, attacked))

    def after_learner(self, step: Step) -> dict[str, float]:
        if self.round.attacks:
            # The engine averages over ranks, so the loss was scaled by their number; the optimizer sums over ranks.
            size = self.context.data_ranks.size
            self.round.gradients = [torch.zeros_like(p) if p.grad is None else p.grad / size for p in self.parameters]
            self.update(step)
        return super().after_learner(step)
