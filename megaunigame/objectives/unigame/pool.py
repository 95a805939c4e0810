"""The pool of hard pictures: mined pictures pass the CLIP filter into the hard buffer, and are replayed as rows."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megaunigame.judges.clip_filter import ClipFilter
from megaunigame.objectives.player import Context
from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.paths import AttackResult
from megaunigame.objectives.unigame.settings import BufferSettings
from megaunigame.objectives.unigame.tally import Attacked, Tally, Totals
from megaunigame.objectives.unigame.undisturbed import Undisturbed
from megaunigame.replay.hard_buffer import HardBuffer, MergeReport
from megaunigame.replay.rows import pack, to_records, to_rows
from megaunigame.step.inputs import UnderstandInputs

log = logging.getLogger(__name__)

PATIENCE = 3
"""Consecutive merges without a candidate before a warning."""


class Pool:
    """Filter, buffer, and the counts of the current step, on one rank."""

    def __init__(self, settings: BufferSettings, buffer: HardBuffer, clip: ClipFilter | None, context: Context):
        self.settings, self.buffer, self.clip, self.context = settings, buffer, clip, context
        self.tally = Tally(context.data_ranks.device)
        self.mined: list[tuple[UnderstandInputs, Tensor, int]] = []
        """Per micro-step: questions on the host, packed candidates (B, K, n) on the device, and the step."""
        self.replayed: list[tuple[np.ndarray, Tensor]] = []
        """Per micro-step: records that were replayed, and their losses on the device."""
        self.merged: MergeReport | None = None
        """The last merge."""
        self.empty_merges = 0
        """Consecutive merges without a candidate."""
        self.distinct = 0
        """Different pictures that all ranks have replayed since the start of the run."""

    def similarity(self, attack: Attack, pictures: Tensor) -> Tensor:
        """(B,) cosine of pictures (B, 3, H, W) in [-1, 1] with their source or text; 1 without a filter."""
        if self.clip is None:
            return pictures.new_ones(len(pictures))
        return self.clip.similarity(pictures, sources=attack.redraw.targets, texts=attack.texts)

    @torch.no_grad()
    def mine(
        self,
        attack: Attack,
        attacked: AttackResult,
        pictures: Tensor,
        losses: Tensor,
        question: UnderstandInputs,
        step: int,
        undisturbed: Undisturbed | None = None,
    ) -> None:
        """Offer the candidates of one micro-step: pictures (K, B, 3, H, W) in [-1, 1], loss sums (K, B).

        `question` is that of `attack`, on the host. They enter the buffer in `collect`. `undisturbed`: None where the settings
        compare with nothing.
        """
        counts = attack.question.counts
        real, length = counts > 0, attacked.delta.norm(dim=-1).mean(1)
        plain = Undisturbed(torch.zeros_like(losses[0]), real) if undisturbed is None else undisturbed
        reference = plain.losses if self.settings.hardness == "gap" else torch.zeros_like(plain.losses)
        hardness = (losses - reference) / counts.clamp(min=1)
        seen = [self.similarity(attack, shown) for shown in pictures]
        accepted: list[Tensor] = []
        for similarity, loss in zip(seen, losses, strict=True):
            plausible = torch.ones_like(real) if self.clip is None else self.clip.accepts(similarity)
            accepted.append(real & plausible & plain.right if self.settings.label_check else real & plausible)
            self.tally.add(Attacked(real, plausible, similarity, loss, counts, attacked.changed, length, plain))
        admitted = hardest_of_each(hardness, torch.stack(accepted), self.settings.topk)
        reference = reference / counts.clamp(min=1)
        packed = [pack(*each, reference) for each in zip(pictures, hardness, seen, admitted, strict=True)]
        self.mined.append((question, torch.stack(packed, 1), step))

    def collect(self) -> None:
        """Put this step's candidates and losses of replayed records into the buffer.

        Once per step, after the update, when the device is idle: each copy to the host waits for it.
        """
        for question, packed, step in self.mined:
            same = self.context.data_ranks.same(packed)
            candidates = [to_records(self.buffer.layout, question, each, step) for each in same.cpu().unbind(1)]
            # By row, then by candidate: the order in which a single rank would have mined them.
            records, accepted = (np.stack(each, 1).ravel() for each in zip(*candidates, strict=True))
            self.tally.not_finite += self.buffer.mine(records, accepted)
        for indices, losses in self.replayed:
            self.buffer.refresh(indices, self.context.data_ranks.same(losses).cpu().numpy()[: len(indices)])
        self.mined, self.replayed = [], []

    def draw(self, rows: int, micro_steps: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Indices of at most `rows` records for each micro-step, none twice."""
        drawn = self.buffer.draw(rows * micro_steps, self.settings.temperature, rng, remove=self.settings.draw == "remove")
        times = self.buffer.records(drawn)["drawn"]
        self.tally.replayed, self.tally.empty = len(drawn), rows * micro_steps - len(drawn)
        self.tally.distinct, self.tally.drawn = int((times == 1).sum()), int(times.sum())
        return [drawn[micro * rows : (micro + 1) * rows] for micro in range(micro_steps)]

    def rows(self, indices: np.ndarray) -> UnderstandInputs:
        """Understand rows of records, on the CPU."""
        return to_rows(self.context.model, self.buffer.records(indices))

    def refresh(self, indices: np.ndarray, losses: Tensor) -> None:
        """Keep the new losses (B,) of replayed records until `collect`."""
        if len(indices):
            self.replayed.append((indices, losses))

    def merge(self, step: int) -> None:
        """Collective: move the hardest candidates of all ranks into the buffer."""
        self.merged = self.buffer.merge(self.context.data_ranks, self.settings.percentile, step, self.settings.max_age)
        self.empty_merges = 0 if self.merged.candidates else self.empty_merges + 1
        if self.empty_merges and self.empty_merges % PATIENCE == 0 and self.context.data_ranks.is_main:
            log.warning("The hard buffer got no candidate in the last %d merges: %s.", self.empty_merges, self._cause())

    def _cause(self) -> str:
        """Why no candidate may have entered."""
        causes = []
        if self.clip is not None:
            causes.append(
                f"the CLIP filter rejects all of them (tau {self.clip.tau:g}): lower objectives.unigame.clip.tau or "
                "objectives.unigame.adversary.eps_max"
            )
        if self.settings.label_check:
            causes.append(
                "none is answered right without the perturbation (see buffer/answered_right; long answers, or several of one "
                "picture, hardly ever are): type objectives.unigame.attack_turns=1, or "
                "objectives.unigame.buffer.label_check=false"
            )
        return "; or ".join(causes) or "no attacked picture had an answer and a finite loss"

    def metrics(self, step: int, attacked: bool) -> dict[str, float]:
        """Collective: the counts of this step over all ranks, by one small all-reduce."""
        size = self.buffer.size
        device = self.context.data_ranks.device
        held = torch.tensor([size, size * self.buffer.mean_age(step) if size else 0.0], dtype=torch.float64)
        local = torch.cat([self.tally.sums(), held.to(device, non_blocking=True)])
        sums = self.context.data_ranks.all_reduce_sum(local).tolist()
        total, whole, ages = Totals(*sums[:-2]), sums[-2], sums[-1]
        self.tally = Tally(device)
        self.distinct += int(total.distinct)
        metrics = {names.BUFFER_SIZE: whole, names.BUFFER_REPLAYED: total.replayed}
        metrics |= {names.BUFFER_EMPTY: total.empty, names.BUFFER_DISTINCT: self.distinct}
        if total.replayed:
            metrics[names.BUFFER_DRAWN] = total.drawn / total.replayed
        if whole:
            metrics[names.BUFFER_AGE] = ages / whole
        if self.merged is not None:
            metrics |= {names.BUFFER_ENTERED: self.merged.entered, names.BUFFER_MOVED: self.merged.moved}
            if math.isfinite(self.merged.threshold):
                metrics[names.BUFFER_THRESHOLD] = self.merged.threshold
        return metrics | (total.metrics(self.clip is not None, self.settings.compares) if attacked else {})

    def state_dict(self) -> dict[str, Any]:
        """State that is equal on all ranks, as JSON values."""
        merged = None if self.merged is None else asdict(self.merged)
        return {"empty_merges": self.empty_merges, "merged": merged, "distinct": self.distinct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.empty_merges, self.distinct = state["empty_merges"], state["distinct"]
        self.merged = None if state["merged"] is None else MergeReport(**state["merged"])


def hardest_of_each(hardness: Tensor, accepted: Tensor, topk: int) -> Tensor:
    """(K, B) bool: the `topk` hardest of the `accepted` candidates of each row, the earlier one among equals; 0: all.

    A hardness that is not finite stays accepted, to be counted where the buffer drops it.
    """
    if not topk:
        return accepted
    usable = torch.where(accepted & hardness.isfinite(), hardness, -torch.inf)
    place = usable.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    return accepted & ((place < topk) | ~hardness.isfinite())
