"""The game in plain torch, written again without the objective's code: one process, no engine, the rows of all ranks.

It is given the hard rows that the ranks drew (tests/replay and buffer.py test the buffer), and computes everything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megaunigame.engine.schedule import lr_factor
from megaunigame.models.base import clamped
from megaunigame.models.diffusion.latent_pictures import LatentPictures
from megaunigame.objectives.unigame.attack import Attack, attack_of
from megaunigame.parallel.ranks import Ranks
from megaunigame.randomness import derive
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from megaunigame.step.micro import MicroStep
from megaunigame.training.trainer import Trainer
from tests.multi_process.decoding_reference import decoded
from tests.multi_process.plain_reference import PlainReference


class PlainGame(PlainReference):
    """The same game in plain torch."""

    def __init__(self, trainer: Trainer, game: dict[str, Any], world: Ranks):
        super().__init__(trainer.recipe, trainer.plan, trainer.objective_of, trainer.accumulation, world.size)
        self.game, self.world = {"mode": "alternating", "path": "decoder", "anchor": "source", "every": 1, **game}, world
        self.redrawn_by = game["redraw"] if game.get("redraw", "own") != "own" else None
        width, hidden = self.model.token_width, game["adversary"]["hidden"]
        torch.manual_seed(derive(trainer.recipe.seed, 1))
        inner = (nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        layers = [*inner, nn.Linear(hidden, width, bias=False)]
        nn.init.orthogonal_(layers[-1].weight)
        self.network, self.gate = nn.Sequential(*layers), nn.Parameter(torch.zeros(1))
        self.adversary = [self.gate, *self.network.parameters()]
        self.adversary_optimizer = torch.optim.AdamW(self.adversary, lr=0.0, weight_decay=0.0)

    def attack_inputs(self) -> list[Attack]:
        first = self.step_number * self.accumulation
        batches = [ranks[m] for ranks in self.ranks for m in range(first, first + self.accumulation)]
        return [attack_of(MicroStep(0, b.plan, b.inputs, b.aside), self.redrawn_by, captioned=False) for b in batches]

    def attacked_losses(self, inputs: Attack) -> tuple[Tensor, Tensor]:
        """Loss sums and penalties, (B,) each."""
        game, model = self.game, self.model
        if game["path"] == "embedding":
            tokens = model.visual_tokens(inputs.question.images)[:, 0].detach()
        else:
            with torch.no_grad():
                tokens = self.redrawn(inputs.redraw)
        delta = self.perturbation(tokens)
        question = UnderstandInputs(**vars(inputs.question))
        if game["path"] == "embedding":
            question.visual_delta = delta.unsqueeze(1)
        else:
            target = model.encode_target(inputs.redraw.targets)
            pixels = clamped(decoded(model, tokens, delta, target, anchored=game["anchor"] == "source"))
            # The other tiny models read pictures as they are drawn.
            question.images = (model.as_source(pixels) if isinstance(model, LatentPictures) else pixels).unsqueeze(1)
        losses = model(question).loss_sum
        p = game["penalties"]
        penalties = p["l2"] * (delta**2).mean((1, 2)) + p["tv"] * ((delta[:, 1:] - delta[:, :-1]) ** 2).mean((1, 2))
        return losses, penalties + p["gate"] * self.gate.sigmoid() ** 2

    def redrawn(self, inputs: GenerateInputs) -> Tensor:
        """(B, N, D) hidden states that draw the whole picture; where a pass reads codes (Show-o), all are masked, and where it
        reads a noisy picture (BAGEL), time and noise are fixed."""
        if self.model.predicts_whole or not self.model.has_codes:
            return self.model(inputs).hidden
        codes = self.model.encode_target(inputs.targets)
        return self.model.predict_masked(inputs, codes, torch.ones_like(codes, dtype=torch.bool), predict=False).hidden

    def perturbation(self, tokens: Tensor) -> Tensor:
        """Of the length eps times that of each token."""
        u = self.network(tokens)
        eps = self.game["adversary"]["eps_max"] * self.gate.sigmoid()
        return eps * u / u.norm(dim=-1, keepdim=True) * tokens.norm(dim=-1, keepdim=True)

    def play(self, hard: list[UnderstandInputs]) -> tuple[float, float, dict[str, float]]:
        """One step with the hard rows of all ranks: the adversary's loss and gradient norm, and the learner's mean losses."""
        game, attacks = self.game, self.step_number % self.game["every"] == 0
        sources = self.attack_inputs()
        lr = self.recipe.optimizer.lr
        if game.get("schedule") == "follow":
            lr *= lr_factor(self.recipe.schedule, self.step_number)
        adversarial, norm, gradients = float("nan"), float("nan"), []
        positions = max(1.0, sum(float(s.question.counts.sum()) for s in sources))
        if attacks:
            total, penalty, pictures = torch.zeros(()), torch.zeros(()), 0
            for inputs in sources:
                losses, penalties = self.attacked_losses(inputs)
                total, penalty = total + losses.sum(), penalty + penalties[inputs.question.counts > 0].sum()
                pictures += int((inputs.question.counts > 0).sum())
            goal = penalty / max(pictures, 1) - game["gain"] * total / positions
            gradients = list(torch.autograd.grad(goal, self.adversary))
            adversarial, norm = float(total.detach()) / positions, float(torch.cat([g.flatten() for g in gradients]).norm())
        if attacks and game["mode"] == "alternating":
            self.move(gradients, norm, lr)
        extra = self.hard_loss(hard)
        if attacks and game["mode"] == "simultaneous":
            # The learner descends where the adversary ascends: both from the players as they stood before this step.
            fresh = sum(self.attacked_losses(inputs)[0].sum() for inputs in sources) / positions
            extra = extra + 0.5 * fresh
        self.extra = extra
        means, self.norm = self.step()
        if attacks and game["mode"] == "simultaneous":
            self.move(gradients, norm, lr)
        return adversarial, norm, means

    def move(self, gradients: list[Tensor], norm: float, lr: float) -> None:
        """The adversary's update; what the learner's backward left in its gradients does not count."""
        for parameter, gradient in zip(self.adversary, gradients, strict=True):
            parameter.grad = gradient * min(1.0, self.game["clip_norm"] / max(norm, 1e-12))
        self.adversary_optimizer.param_groups[0]["lr"] = self.game["ratio"] * lr
        self.adversary_optimizer.step()

    def hard_loss(self, hard: list[UnderstandInputs]) -> Tensor:
        """beta times the mean loss of the hard rows, times the share of them that is filled; in the embedding path they are
        perturbed again."""
        total, count = torch.zeros(()), 0.0
        filled = torch.cat([rows.counts > 0 for rows in hard]).float().mean()
        for rows in hard:
            if self.game["path"] == "embedding":
                with torch.no_grad():
                    tokens = self.model.visual_tokens(rows.images)[:, 0]
                    rows.visual_delta = self.perturbation(tokens).unsqueeze(1)
            total, count = total + self.model(rows).loss_sum.sum(), count + float(rows.counts.sum())
        return 0.5 * filled * total / max(count, 1.0)

    def more_loss(self, means: dict[str, Tensor]) -> Tensor:
        """In play(): the rows of the game; its dummies among the learner's own rows have no loss."""
        return self.extra
