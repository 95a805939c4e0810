"""How a causal language model reads the rows of a pass: padded side by side, or one after another as a pack."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor

from megaunigame.attention import plain
from megaunigame.attention import taps as attention_taps
from megaunigame.attention.packs import Pack
from megaunigame.attention.taps import PackedTap, Tap
from megaunigame.errors import ModelError
from megaunigame.models.base import Processor
from megaunigame.models.base.attention import FLASH, OPEN_MASKS, AttentionNeeds, is_installed
from megaunigame.models.causal import masks
from megaunigame.models.causal.shared_rows import SharedRows
from megaunigame.models.text.processor import RowProcessor
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND

log = logging.getLogger(__name__)

ATTENTIONS = ("sdpa", "eager", *FLASH)


def check_attention(attention: str, only_causal: bool = True) -> None:
    """Raise ModelError for an attention implementation that cannot run here; `only_causal`: as in `CausalModel`."""
    if attention not in ATTENTIONS:
        raise ModelError(f"Unknown model.attention {attention!r}; legal are {', '.join(ATTENTIONS)}.")
    if attention in FLASH and not only_causal:
        raise ModelError(
            f"model.attention={attention} takes causal masks only, and {OPEN_MASKS}; "
            "type model.attention=sdpa (without a recipe: --attention sdpa)."
        )
    if attention in FLASH and not is_installed(FLASH[attention]):
        raise ModelError(
            f"model.attention={attention} needs the package {FLASH[attention]}; type model.attention=sdpa (without a recipe: "
            "--attention sdpa)."
        )


class RowReader(SharedRows):
    """Embedded rows (B, S, D) -> their hidden states (B, S, D)."""

    only_causal: ClassVar[bool] = True
    """Whether no position sees what comes after it; False: some do (`masks.causal`, `opened`)."""
    can_pack: ClassVar[Collection[str]] = (UNDERSTAND, GENERATE)
    """Passes that the language model can read as packs."""
    processor: RowProcessor

    def __init__(self, config: Any, processor: Processor, *, attention: str, gradient_checkpointing: bool):
        check_attention(attention, self.only_causal)
        super().__init__(config, processor, attention=attention, gradient_checkpointing=gradient_checkpointing)
        dropout = getattr(self.language_model.config, "attention_dropout", 0.0)
        if attention == "flash_attention_3" and dropout:
            raise ModelError(
                f"model.attention=flash_attention_3 has no dropout, and this model's attention drops out {dropout:g} in "
                "training; type model.attention=sdpa (without a recipe: --attention sdpa)."
            )
        self._rehearsed: dict[str, int] = {}
        """Name of a pass -> most tokens that the dry run had in one; without a dry run, nothing is counted on."""
        self._overfull: set[str] = set()

    @classmethod
    def attention_needs(cls, path: str) -> AttentionNeeds:
        dropout = getattr(cls.configuration(path).get_text_config(), "attention_dropout", 0.0)
        return AttentionNeeds("" if cls.only_causal else OPEN_MASKS, dropout)

    @property
    def _implementation(self) -> str:
        """Of the attention, in transformers' table; taps aside."""
        return attention_taps.untapped(self.language_model.config._attn_implementation)

    @property
    def _flash(self) -> bool:
        return self._implementation.startswith("flash")

    def install_taps(self) -> int:
        """Make `PassInputs.taps` work; returns the layers of the language model.

        Raises ModelError when their attention cannot be intercepted.
        """
        attention_taps.install(self.language_model)
        return self.language_model.config.num_hidden_layers

    def pack_rows(self, tokens: int) -> None:
        if self._implementation == "eager":
            raise ModelError(
                "model.pack_tokens needs model.attention=sdpa or flash_attention_2: eager attention computes whole maps. Type "
                "model.attention=sdpa, or model.pack_tokens=0."
            )
        self.packed_passes, self.processor.pack_tokens = self.can_pack, dict.fromkeys(self.can_pack, tokens)

    def lengths(self, inputs: PassInputs, more: int = 0) -> list[int] | None:
        """What `_read` is told of rows with `more` positions after their tokens: how many each has; None: it reads no pack."""
        if inputs.pass_name not in self.packed_passes:
            return None
        lengths = [length + more for length in inputs.lengths or inputs.attention.sum(1).tolist()]
        name, total = inputs.pass_name, sum(lengths)
        if self.rehearses:
            self._rehearsed[name] = max(total, self._rehearsed.get(name, 0))
        elif total > self._rehearsed.get(name, total) and name not in self._overfull:
            self._overfull.add(name)
            log.warning(
                f"One {name} pass of this rank has {total:,} tokens, and the dry run had {self._rehearsed[name]:,} "
                f"(model.pack_tokens={self.processor.pack_tokens[name]}). It is made, and may need more memory than there is. "
                "This is said once."
            )
        return lengths

    def _read(
        self,
        embeds: Tensor,
        attention: Tensor,
        *,
        front_padding: bool = True,
        segments: Tensor | None = None,
        opened: Tensor | None = None,
        positions: Tensor | None = None,
        tap: Tap | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        """(B, S, D) inputs -> (B, S, D) hidden states after the final norm; `tap` measures attention.

        `front_padding`: as in `PassInputs`. `opened`: as in `masks.causal`. `lengths`: positions in each row of `attention`, to
        read the rows as a pack; padding then gets zeros.
        `positions` (B, S): None counts padding too, which makes no difference to rotary
        embeddings unless there is padding between two tokens.
        """
        if self._flash and segments is not None:
            raise ModelError("Independent turns need model.attention=sdpa or eager: flash takes no mask.")
        if segments is not None and positions is None:
            positions = masks.segment_positions(attention, segments)
        if lengths is not None:
            return self._read_pack(embeds, Pack(attention, lengths), segments, opened, positions, tap)
        masked = segments is not None or opened is not None
        if front_padding and not masked and tap is None and self._implementation == plain.PLAIN:
            return self._read_moved(embeds, attention, positions)
        mask: Tensor | None = None
        if self._flash:
            mask = attention
        elif masked or front_padding:
            mask = masks.additive(masks.causal(attention, segments, opened), embeds.dtype)
        options = {} if tap is None else {"tap": tap}
        read = self.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, **options
        )
        return read.last_hidden_state

    def _read_moved(self, embeds: Tensor, attention: Tensor, positions: Tensor | None) -> Tensor:
        """`_read` of causal rows with padding in front. The padding is read after the tokens, so that they need no mask: a mask
        makes attention about twice as dear, and repeats grouped keys and values."""
        tokens_first = (~attention).to(torch.uint8).argsort(dim=1, stable=True)
        places = torch.arange(len(attention), device=attention.device).unsqueeze(1) * attention.shape[1] + tokens_first
        moved = embeds.flatten(0, 1).index_select(0, places.flatten()).view_as(embeds)
        read = self.language_model(
            inputs_embeds=moved,
            attention_mask=None,
            position_ids=None if positions is None else positions.gather(1, tokens_first),
            use_cache=False,
        ).last_hidden_state.flatten(0, 1)
        return torch.zeros_like(read).index_copy(0, places.flatten(), read).view_as(embeds)

    def _read_pack(
        self,
        embeds: Tensor,
        pack: Pack,
        segments: Tensor | None,
        opened: Tensor | None,
        positions: Tensor | None,
        tap: Tap | None,
    ) -> Tensor:
        """`_read` of a pack: the same arguments, the same (B, S, D), without what is computed for padding."""
        if positions is None:
            positions = (pack.attention.long().cumsum(1) - 1).clamp_min(0)
        masked = segments is not None or opened is not None
        if masked:
            pack.masks = masks.of_rows(pack, segments, opened, embeds.dtype)
        options: dict[str, Any] = pack.flash_options if self._flash else {"pack": pack}
        if tap is not None:
            seen = masks.causal(pack.attention, segments, opened).unsqueeze(1) if masked else pack.attention
            tap.ranks = self.sequence
            options["tap"] = PackedTap(tap, pack, seen)
        return pack.rows(self._through_layers(pack.packed(embeds), pack.packed(positions), options))
