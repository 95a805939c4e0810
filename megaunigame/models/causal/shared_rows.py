"""A pack that several ranks read together: each has a part of its positions in the layers, and of its labels in the head.

What comes before and after is the same on all of them: they embed all positions, and have all hidden states and losses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from megaunigame.attention import sharing
from megaunigame.attention.sharing import Sharing
from megaunigame.errors import ModelError
from megaunigame.models.causal.head import TokenHead, TokenScores
from megaunigame.models.family import Family
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.shared import collect, part_of
from megaunigame.step.inputs import IGNORE


class SharedRows(Family):
    """Layers and head of a language model, on the ranks of `share_sequence`."""

    divides_rows: ClassVar[bool] = True
    """Whether its layers work on any part of the positions: attention alone, in transformers' table, sees others."""
    lm_head: TokenHead
    sequence: Ranks | None = None
    """Ranks that read together; None: this one reads alone."""
    drops: bool = False
    """Whether there is dropout in the layers."""

    @property
    @abstractmethod
    def language_model(self) -> PreTrainedModel:
        """The decoder without its head."""

    @classmethod
    def check_sequence_ranks(cls, path: str, ranks: int) -> None:
        if not cls.divides_rows:
            super().check_sequence_ranks(path, ranks)
            return
        heads = cls.configuration(path).get_text_config().num_attention_heads
        if heads % ranks:
            legal = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
            raise ModelError(
                f"engine.sequence_ranks={ranks} does not divide the {heads} attention heads of the language model in {path}. "
                f"Legal with so many: {legal}."
            )

    def share_sequence(self, ranks: Ranks) -> None:
        model = self.language_model
        sharing.install(model)
        self.sequence = ranks
        droppers = (isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        self.drops = any(droppers) or getattr(model.config, "attention_dropout", 0.0) > 0

    def _through_layers(self, embeds: Tensor, positions: Tensor, options: dict[str, Any]) -> Tensor:
        """(1, T, D), (1, T) -> (1, T, D): hidden states after the final norm. `options`: of the attention function."""
        if self.sequence is None:
            read = self.language_model(
                inputs_embeds=embeds, attention_mask=None, position_ids=positions, use_cache=False, **options
            )
            return read.last_hidden_state  # type: ignore[no-any-return]
        shared = Sharing(self.sequence, embeds.shape[1])
        own = {"inputs_embeds": shared.own(embeds), "position_ids": shared.own_positions(positions)}
        with _own_dropout(self.sequence, embeds.device) if self.training and self.drops else nullcontext():
            read = self.language_model(**own, attention_mask=None, use_cache=False, sharing=shared, **options)
        return shared.whole(read.last_hidden_state)

    def _scores(self, states: Tensor, labels: Tensor) -> TokenScores:
        """The head at hidden states (P, D) with labels (P,); of ranks that read together each computes a part."""
        ranks, positions = self.sequence, len(labels)
        if ranks is None:
            return self.lm_head(states, labels)  # type: ignore[no-any-return]
        each = -(-positions // ranks.size)
        padding = each * ranks.size - positions
        own = part_of(F.pad(states, (0, 0, 0, padding)).unflatten(0, (ranks.size, each)), ranks)
        own_labels = F.pad(labels, (0, padding), value=IGNORE).unflatten(0, (ranks.size, each))[ranks.rank]
        scores = self.lm_head(own, own_labels)
        losses, likeliest = collect(scores.losses, ranks), ranks.collect(scores.likeliest)
        return TokenScores(losses.flatten()[:positions], likeliest.flatten()[:positions])


@contextmanager
def _own_dropout(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Inside, each rank draws other numbers, because it has other positions; after it, all draw the same again."""
    seed = int(torch.randint(2**62, (), device="cpu")) + ranks.rank
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
