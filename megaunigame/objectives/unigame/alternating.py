"""Alternating (the paper): the adversary moves while the learner is frozen, then the learner.

By default the sources are redrawn before the learner's passes. With `redraw`, the learner's generate pass redraws them, and
the attack comes between it and the understand pass of the same micro-step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megaunigame.monitoring import names
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.game import PENALTY, Game
from megaunigame.objectives.unigame.paths import AttackResult, Redraw
from megaunigame.objectives.unigame.undisturbed import Undisturbed, ask_both
from megaunigame.step.micro import MicroStep, Step


class Alternating(Game):
    """The adversary gets its gradients from its own passes."""

    def rehearse(self, micro: MicroStep) -> Sequence[Tensor]:
        attack, redrawn, _held = self.rehearsed(micro)  # the graph of the learner's pass stays in memory
        with self.context.aside(), torch.set_grad_enabled(self.adversary.learns):
            attacked = self.perturbed(attack, 0, 0, redrawn)
            penalty = self.penalties(attack, attacked).sum()
            losses, _ = self.asked(attack, attacked)
            if self.adversary.learns:
                torch.autograd.grad(losses.sum() + penalty, self.parameters, allow_unused=True)
        self.pool.buffer.rehearse(self.context.data_ranks)
        return ()

    def before_learner(self, step: Step) -> None:
        super().before_learner(step)
        if self.round.attacks and self.redrawn_by is None:
            for micro in step.micro_steps:
                self.attack(step, micro, None)
            self.update(step)

    def attack(self, step: Step, micro: MicroStep, redrawn: Redraw | None) -> None:
        """Attack one micro-step, add the adversary's gradient, offer the results to the pool."""
        attack = self.attack_of(micro).to(self.context.data_ranks.device)
        with self.context.aside(), torch.set_grad_enabled(self.adversary.learns):
            attacked = self.perturbed(attack, step.number, micro.number, redrawn)
            losses, undisturbed = self.asked(attack, attacked)
            step.passes += attacked.passes + 1
            if self.adversary.learns:
                penalty = self.penalty_share(attack, attacked)
                self.round.penalty = self.round.penalty + penalty.detach()
                goal = penalty - self.config.gain * losses.sum() / self.round.answer_tokens
                for total, part in zip(self.round.gradients, torch.autograd.grad(goal, self.parameters), strict=True):
                    total += part
            pictures = self.mine(step, micro, attack, attacked, losses.detach(), undisturbed)
        self.show(step, micro, attack, attacked, pictures)

    def asked(self, attack: Attack, attacked: AttackResult) -> tuple[Tensor, Undisturbed | None]:
        """Loss sums (B,) of the attacked questions, and where the pool compares, the undisturbed ones, in the same pass."""
        model = self.context.model
        if not self.config.buffer.compares:
            return model(attacked.question).loss_sum, None
        return ask_both(model, attacked.question, self.path.plain(model, attack, attacked))

    def after_learner(self, step: Step) -> dict[str, float]:
        if self.round.attacks and self.redrawn_by is not None:
            self.update(step)
        metrics = super().after_learner(step)
        if self.round.attacks and self.adversary.learns:
            metrics[names.loss(PENALTY)] = self.context.data_ranks.all_reduce_sum(self.round.penalty).item()
        return metrics
