"""AIA in plain torch: whole attention maps of eager attention, kept for every layer, and the definition row by row."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from megaunigame.attention.targets import table
from megaunigame.models.causal.token_codes import TokenCodeModel
from megaunigame.step.inputs import IGNORE, PassInputs
from megaunigame.step.requests import GENERATE
from tests.multi_process.plain_reference import PlainReference


class AttentionReference(PlainReference):
    """Adds weight * sum over counted rows of mean_l huber(share - target) / (counted rows of all ranks), for each pass."""

    def __init__(self, recipe, *rest):
        eager = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, attention="eager"))
        super().__init__(eager, *rest)
        self.settings = recipe.objectives["aia"]
        layers = self.model.language_model.layers
        self.maps: list[Tensor] = []
        for layer in layers:
            layer.self_attn.register_forward_hook(lambda module, args, output: self.maps.append(output[1]))
        self.table = table("relative", len(layers))
        self.losses: dict[str, list[Tensor]] = {p: [] for p in self.plan.passes}
        drawn_from_a_picture = {r.term for r in self.plan.requests if r.pass_name == GENERATE and r.takes_source}
        self.wanted = self.settings.get("terms") or set(self.plan.terms) - drawn_from_a_picture
        self.calibration: dict[str, list[float]] = {p: [] for p in self.plan.passes}

    def after_pass(self, inputs: PassInputs) -> None:
        pass_name, maps, self.maps = inputs.pass_name, self.maps, []
        for row in range(len(inputs.tokens)):
            queries, keys = self._sets(pass_name, inputs, row, maps[0].shape[-1])
            # Rows of other terms, without data, without an image, without their condition.
            wanted = inputs.counts[row] and keys and self.plan.terms[int(inputs.terms[row])] in self.wanted
            if not wanted or (pass_name == GENERATE and not inputs.intact[row]):
                continue
            losses = []
            for layer, attention in enumerate(maps):
                if layer not in (self.settings.get("layers") or range(len(maps))):
                    continue
                share = attention[row][:, queries][:, :, keys].sum(-1).mean()
                target = self.table[pass_name][layer]
                losses.append(torch.nn.functional.huber_loss(share, torch.tensor(target.target), delta=target.delta))
            self.losses[pass_name].append(torch.stack(losses).mean())

    def _sets(self, pass_name: str, inputs: PassInputs, row: int, size: int) -> tuple[list[int], list[int]]:
        places = range(inputs.tokens.shape[1])
        image, real = inputs.image_positions[row].tolist(), inputs.attention[row].tolist()
        if pass_name == GENERATE:
            drawn, text = list(range(len(places), size)), [p for p in places if real[p] and not image[p]]
            if self.recipe.model.family == "bagel":  # latent tokens come last; the end token of the picture is no text
                return drawn[-self.model.processor.after_prompt :], [p for p in text if p < len(places) - 1]
            if self.recipe.model.family == "show_o":  # the token that ends the picture is not a code
                return drawn[:-1], text
            if not isinstance(self.model, TokenCodeModel) or self.model.grid.line_end is None:
                return drawn, text
            # Line ends are not codes, those of a source are not text.
            width, line_end = self.model.grid.width, self.model.grid.line_end
            codes = [p for number, p in enumerate(drawn) if number % (width + 1) != width]
            return codes, [p for p in text if inputs.tokens[row, p] != line_end]
        answers = [p for p in places if inputs.labels[row, p] != IGNORE]
        return answers, [p for p in places if image[p]]

    def more_loss(self, means: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        self.more_means = {}
        weight_of = {r.term: r.weight for r in self.plan.requests}
        for pass_name, losses in self.losses.items():
            if not losses:  # every condition was dropped
                continue
            mean = torch.stack(losses).mean()
            self.more_means[f"aia_{pass_name}"] = float(mean.detach())
            weight, known = self.settings.get("weights", {}).get(pass_name), self.calibration[pass_name]
            if weight is None:  # measured in the first two steps, in which it is 0
                weight = 0.0
                if len(known) == 2:
                    weight = sum(loss for loss, _ in known) / (self.settings["ratio"] * sum(p for _, p in known))
                else:
                    ours = [r.term for r in self.plan.of_pass(pass_name) if r.term in self.wanted]
                    loss = sum(weight_of[term] * float(means[term].detach()) for term in ours)
                    known.append((loss, float(mean.detach())))
            total = total + weight * mean
            self.losses[pass_name] = []
        return total
