"""The same training in plain torch: one process, no engine, the rows of all ranks. What the trainer is compared with."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from megaunigame.config import Recipe
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.sources.base import Stream
from megaunigame.data.sources.opening import open_stream
from megaunigame.engine.schedule import lr_factor
from megaunigame.models.base import UnifiedModel
from megaunigame.randomness import seed_micro_step
from megaunigame.registry import find
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import StepPlan

DRAWING = {
    "janus": {"generation_embed", "generation_head"},
    "openuni": {"queries", "connector", "dit"},
    "harmon": {"decoder", "head"},
    "blip3o_next": {"connector", "caption", "dit"},
    "bagel": {"lm_gen", "generation"},
}
"""Groups that only a generate pass reads. Families of token codes have none."""
AFTER_KEYS = re.compile(r"model\.layers\.1\.self_attn\.q_proj\.")
"""Weights of the tiny BAGEL that no drawn picture depends on, but whose gradient is zeros. Others like them have none, so plain
torch leaves them alone."""


class PlainReference:
    """Trains `steps` optimizer steps the way a textbook would, and keeps gradient norm and losses of each."""

    def __init__(self, recipe: Recipe, plan: StepPlan, objective_of: dict, accumulation: int, world_size: int):
        self.recipe, self.plan, self.accumulation = recipe, plan, accumulation
        config = recipe.model
        self.model = find("models", config.family, UnifiedModel).load(
            config.path, attention=config.attention, max_length=config.max_length
        )
        if config.train == "lora":
            lora = config.lora
            self.model.add_lora(
                **{"rank": lora.rank, "alpha": lora.alpha, "dropout": 0.0, "targets": lora.targets, "seed": recipe.seed},
                rslora=lora.rslora,
                dora=lora.dora,
            )
        else:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(self.model.group_of(name) in self._groups())
        self.model.train()
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = self.adamw(self.trained)
        self.ranks = [
            MicroBatches(
                plan, objective_of, self._streams(), self.model.processor, accumulation, rank, world_size, recipe.seed, 0
            )
            for rank in range(world_size)
        ]
        self.step_number = 0
        self.total = 0.0
        """The weighted sum of the terms of the last step."""
        self.more_means: dict[str, float] = {}

    def adamw(self, parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
        """The optimizer of the recipe over `parameters`, which have the names of the model's."""
        o = self.recipe.optimizer
        return torch.optim.AdamW(
            [
                {"params": [p], "weight_decay": self._decay(n, p), "factor": self._factor(n)}
                for n, p in parameters.items()
            ],
            lr=o.lr, betas=tuple(o.betas), eps=o.eps,
        )  # fmt: skip

    def step(self) -> tuple[dict[str, float], float]:
        """One optimizer step: mean loss per term, gradient norm before clipping."""
        factors = self.factors()
        self.optimizer.zero_grad()
        counts = {t: 0.0 for t in self.plan.terms}
        sums: dict[str, Tensor | float] = {t: 0.0 for t in self.plan.terms}
        for rank, micro, inputs in self.batches():
            seed_micro_step(self.recipe.seed, self.step_number, micro, rank)
            for pass_name in self.plan.passes:
                losses = self.model(inputs[pass_name]).loss_sum
                self.after_pass(inputs[pass_name])
                for row, term in enumerate(inputs[pass_name].terms.tolist()):
                    sums[self.plan.terms[term]] += losses[row]
                    counts[self.plan.terms[term]] += float(inputs[pass_name].counts[row])
        # A term at rest in the whole step has a loss of 0, not none: its weights decay and its moments move on.
        means = {t: sums[t] / max(1, counts[t]) for t in self.plan.terms}
        weights = {r.term: r.weight * factors[r.term] for r in self.plan.requests if not r.aside}
        total = sum((weights[t] * mean for t, mean in means.items()), self.more_loss(means))
        total.backward()
        self.total = float(total.detach())
        norm = self.update(self.trained)
        return {t: float(m.detach()) for t, m in means.items() if counts[t]} | self.more_means, norm

    def batches(self) -> list[tuple[int, int, dict[str, PassInputs]]]:
        """Rank, micro-step and inputs of everything that belongs to this optimizer step."""
        first = self.step_number * self.accumulation
        return [(r, m, ranks[first + m].inputs) for r, ranks in enumerate(self.ranks) for m in range(self.accumulation)]

    def update(self, parameters: dict[str, nn.Parameter]) -> float:
        """Clip the gradients and move the parameters; returns the norm before clipping."""
        norm = nn.utils.clip_grad_norm_(list(parameters.values()), self.recipe.optimizer.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr * lr_factor(self.recipe.schedule, self.step_number) * group["factor"]
        self.optimizer.step()
        self.step_number += 1
        return float(norm)

    def factors(self) -> dict[str, float]:
        """Of the weight of each term in the step that begins."""
        return dict.fromkeys(self.plan.terms, 1.0)

    def after_pass(self, inputs: PassInputs) -> None:
        """A pass over the rows of one rank was made."""

    def more_loss(self, means: dict[str, Tensor]) -> Tensor:
        """What a subclass adds to the loss of a step, whose terms have these means; it notes its own in `more_means`."""
        return torch.zeros(())

    def _groups(self) -> set[str]:
        unused = DRAWING.get(self.model.name, set()) if "generate" not in self.plan.passes else set()
        return set(self.recipe.model.groups or self.model.trained_by_default) - unused

    def _decay(self, name: str, parameter: nn.Parameter) -> float:
        idle = self.model.name == "bagel" and "understand" not in self.plan.passes and AFTER_KEYS.match(name)
        return 0.0 if parameter.dim() == 1 or idle else self.recipe.optimizer.weight_decay

    def _factor(self, name: str) -> float:
        return self.recipe.optimizer.group_lr.get("lora" if "lora_" in name else self.model.group_of(name), 1.0)

    def _streams(self) -> dict[str, Stream]:
        data = self.recipe.data
        return {name: open_stream(name, config, self.recipe.seed) for name, config in data.items()}
