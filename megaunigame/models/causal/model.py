"""Base class of families whose causal language model (of transformers) reads text and visual tokens in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from megaunigame.attention import plain
from megaunigame.attention.positions import first_token, image_tokens, prompt_text
from megaunigame.attention.queries import answers, drawn_tokens
from megaunigame.attention.taps import Tap
from megaunigame.errors import ModelError
from megaunigame.models.base import Generators, evaluating
from megaunigame.models.causal import masks
from megaunigame.models.causal.decoding import CachedReader, following, picker, settle
from megaunigame.models.causal.gradient_scale import scale_gradient
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.causal.own_rows import own_row
from megaunigame.models.causal.reading import RowReader
from megaunigame.models.text.processor import RowProcessor
from megaunigame.step.inputs import IGNORE, GenerateInputs, InputsT, Taps, UnderstandInputs, UnderstandOutput
from megaunigame.step.labels import scored_labels


class CausalModel(RowReader):
    """The understand pass, answers and adapters; a family adds its vision path and its generate pass."""

    processor: RowProcessor
    lm_head: TokenHead

    @property
    def vision_tower(self) -> PreTrainedModel | None:
        """Encoder of source pictures; None in families that read codes of the frozen tokenizer."""
        return None

    @classmethod
    def language_layers(cls, path: str) -> int:
        """Layers of the language model in `path`."""
        return cls.configuration(path).get_text_config().num_hidden_layers

    @classmethod
    def trained_positions(cls, path: str) -> int:
        """`max_position_embeddings` of the language model in `path`; its positions are rotary, so longer rows run."""
        return cls.configuration(path).get_text_config().max_position_embeddings

    @property
    def adapted(self) -> nn.Module:
        """What adapters go into."""
        return self.language_model

    def layers(self) -> Sequence[nn.Module]:
        """The layers of the language model."""
        return list(self.language_model.layers)

    def choose_attention(self, attention: str) -> None:
        """Set the attention of language model and vision tower."""
        plain.choose_attention(self.language_model, attention)
        if self.vision_tower is not None:
            self.vision_tower.set_attn_implementation(attention)

    def checkpoint_activations(self) -> None:
        """Recompute activations of language model and vision tower in the backward."""
        for part in (self.language_model, self.vision_tower):
            if part is not None:
                part.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    @property
    def token_width(self) -> int:
        """D."""
        return self.language_model.config.hidden_size

    def as_source(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> resized and normalized like source pictures; differentiable."""
        size = self.processor.source_size
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bilinear")
        return self.processor.normalize_source((pixels + 1) * 127.5)

    def embed(self, inputs: UnderstandInputs | GenerateInputs) -> Tensor:
        """(B, S, D): embedded tokens, image positions overwritten by the visual tokens of the valid images."""
        embeds = self.language_model.embed_tokens(inputs.tokens)
        return embeds if inputs.images is None else with_pictures(embeds, self.visual_tokens(inputs.images), inputs)

    def opened(self, inputs: UnderstandInputs) -> Tensor | None:
        """(B, S or 1, S) bool: what positions of an understand row see in addition to causal attention (`masks.causal`)."""
        return None

    def positions(self, inputs: UnderstandInputs) -> Tensor | None:
        """(B, S): rotary positions of an understand row; None: counted, as `_read` does."""
        return None

    def understand(self, inputs: UnderstandInputs, predict: bool) -> UnderstandOutput:
        """Read pictures and conversations. The head, by far the largest product of a row, runs only at labels."""
        tap = None
        if inputs.taps is not None:
            queries = answers(inputs.label_positions, inputs.taps.queries, inputs.tokens.shape[1])
            tap = Tap(inputs.taps, queries, image_tokens(inputs, inputs.taps), first_token(inputs.attention))
        hidden = self._read(
            self.embed(inputs),
            inputs.attention,
            front_padding=inputs.front_padding,
            segments=inputs.segments,
            opened=self.opened(inputs),
            positions=self.positions(inputs),
            tap=tap,
            lengths=self.lengths(inputs),
        )
        rows, length = inputs.tokens.shape
        everywhere = torch.arange(1, length, device=inputs.tokens.device).expand(rows, -1)
        positions = everywhere if predict else inputs.label_positions
        labels = scored_labels(inputs, positions)
        scored = self._scores(_before(hidden, positions), labels.flatten())
        likeliest = scored.likeliest.view(positions.shape)
        return UnderstandOutput(
            loss_sum=scored.losses.view(positions.shape).sum(1),
            predictions=torch.cat([inputs.tokens[:, :1], likeliest], dim=1) if predict else None,
            attention=None if tap is None else tap.shares(),
            right=((likeliest == labels) | (labels == IGNORE)).all(1),
        )

    def _prompt_tap(self, inputs: GenerateInputs, drawn: Sequence[int], seen: int | None = None) -> Tap | None:
        """The tap of a generate pass. `drawn`, ascending: which of the positions read after the prompts are Q. `seen`: number
        of positions after the prompts where Q see them all; None: Q see what comes before them."""
        if inputs.taps is None:
            return None
        rows, width = inputs.tokens.shape
        after = (0, drawn[-1] + 1 if seen is None else seen)
        keys = F.pad(self._prompt_text(inputs, inputs.taps), after)
        queries = drawn_tokens([width + place for place in drawn], rows, inputs.taps.queries, keys.device)
        if seen is not None:
            queries = queries._replace(reach=[(0, width + seen)] * len(queries.reach))
        return Tap(inputs.taps, queries, keys, F.pad(first_token(inputs.attention), after))

    def _prompt_text(self, inputs: GenerateInputs, taps: Taps) -> Tensor:
        """(B, S): K of a generate pass."""
        return prompt_text(inputs, taps)

    @torch.no_grad()
    def answer(
        self,
        inputs: UnderstandInputs,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        generator: Generators | None = None,
        lockstep: bool = True,
    ) -> Tensor:
        """(B, max_new_tokens): continuation of left padded prompts, as `UnifiedModel.answer`."""
        end, pick = self.processor.eos_id, picker(temperature, generator)
        inputs = inputs if lockstep else self.with_own_codes(inputs)
        with evaluating(self):
            reader = CachedReader(
                self.language_model,
                inputs.attention,
                flash=self._flash,
                leave_point=self.leave_point,
                opened=self.opened(inputs),
                positions=self.positions(inputs),
            )
            hidden = reader.prompt(self.embed(inputs))
            ended = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
            tokens: list[Tensor] = []
            for _ in range(max_new_tokens):
                if tokens:
                    hidden = reader.token(self.language_model.embed_tokens(tokens[-1]))
                logits = self.lm_head(hidden)
                chosen = pick(logits.float())
                if not lockstep and logits.dtype == torch.float32:
                    before = torch.stack(tokens, dim=1) if tokens else inputs.tokens[:, :0]
                    by_itself = partial(self._answer_logits, inputs, before, ended)
                    chosen = settle(pick, chosen, logits, logits.abs().amax(-1), by_itself)
                tokens.append(chosen.masked_fill(ended, end))
                ended = ended | (tokens[-1] == end)
                if not lockstep and bool(ended.all()):
                    break
        if not lockstep:
            pick.check_finite()
        return torch.stack(tokens, dim=1)

    def _answer_logits(self, inputs: UnderstandInputs, read: Tensor, ended: Tensor, row: int) -> Tensor:
        """(1, V) float32: logits after the prompt of a row and the tokens `read` (B, R) of its answer, computed by itself.

        `ended` (B,): a row that has ended reads nothing, because whatever follows is not looked at.
        """
        one, own = own_row(inputs, row), read[row : row + 1, : 0 if ended[row] else None]
        opened, positions, more = self.opened(one), self.positions(one), own.shape[1]
        embeds = torch.cat([self.embed(one), self.language_model.embed_tokens(own)], dim=1)
        reader = CachedReader(
            self.language_model,
            F.pad(one.attention, (0, more), value=True),
            flash=self._flash,
            leave_point=self.leave_point,
            opened=None if opened is None else masks.lengthened(opened, more),
            positions=None if positions is None else following(positions, more),
        )
        return self.lm_head(reader.prompt(embeds)).float()

    def with_own_codes(self, inputs: InputsT) -> InputsT:
        """`inputs` with the codes of source pictures, each encoded by itself, in families that read codes: how a convolution
        rounds depends on the batch, and so could a code."""
        return inputs

    def linear_layers(self) -> dict[str, list[str]]:
        """What `targets` of `add_lora` may name -> names, or ends of names, of linear layers of the language model."""
        linear = (name for name, module in self.adapted.named_modules() if isinstance(module, nn.Linear))
        return {last: [last] for last in (name.rpartition(".")[2] for name in linear)}

    def add_lora(
        self,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        targets: Sequence[str],
        seed: int,
        rslora: bool = False,
        dora: bool = False,
    ) -> None:
        """Adapters on the linear layers of the language model called `targets`, without names on all; every other parameter is
        frozen."""
        table = self.linear_layers()
        legal = sorted(table)
        if unknown := sorted(set(targets) - set(legal)):
            raise ModelError(
                f"model.lora.targets: unknown target {unknown[0]!r}; the language model of {type(self).__name__} has: "
                f"{', '.join(legal)}. For all of them type model.lora.targets=[]."
            )
        self.requires_grad_(False)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=dropout,
            target_modules=[name for target in targets or legal for name in table[target]],
            use_rslora=rslora,
            use_dora=dora,
        )
        # The same adapters on all ranks. The caller's random state of the CPU comes back; that of GPUs stays what `seed` and
        # the adapters that were made there leave.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.adapted)

    def train(self, mode: bool = True) -> CausalModel:
        """A vision tower that is not trained stays in eval mode."""
        super().train(mode)
        if self.vision_tower is not None:
            self.vision_tower.train(mode and any(p.requires_grad for p in self.vision_tower.parameters()))
        return self


def _before(hidden: Tensor, positions: Tensor) -> Tensor:
    """(B, S, D), (B, P) -> (B * P, D): the states that predict the tokens at `positions`; for position 0 any state."""
    first = torch.arange(len(hidden), device=hidden.device).unsqueeze(1) * hidden.shape[1]
    return hidden.flatten(0, 1).index_select(0, (first + (positions - 1).clamp_min(0)).flatten())


def with_pictures(embeds: Tensor, visual: Tensor, inputs: UnderstandInputs | GenerateInputs) -> Tensor:
    """(B, S, D) with the visual tokens (B, I, N, D) of the valid images at their positions, perturbed and with the gradient
    scaled as the inputs ask."""
    assert inputs.image_valid is not None
    if isinstance(inputs, UnderstandInputs):
        if inputs.visual_delta is not None:
            visual = visual + inputs.visual_delta.to(visual.dtype)
    elif inputs.source_gradient is not None:
        visual = scale_gradient(visual, inputs.source_gradient)
    return place(embeds, visual, inputs.image_valid, inputs.image_positions)


def place(embeds: Tensor, visual: Tensor, valid: Tensor, positions: Tensor) -> Tensor:
    """Overwrite `positions` (B, S) of embeds (B, S, D), in order, by the visual tokens (B, I, N, D) of valid images (B, I).

    Index arithmetic only: shapes and gradient paths are the same whether or not a row has images, so tower and aligner take
    part in every pass of every rank (with a zero gradient if nothing was placed).
    """
    rows, images, length, width = visual.shape
    number = (positions.long().cumsum(1) - 1).clamp_min(0)  # index of the visual token that belongs here
    valid_first = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    image = valid_first.gather(1, (number // length).clamp_max(images - 1))
    row = torch.arange(rows, device=embeds.device).unsqueeze(1)
    source = (row * images + image) * length + number % length
    placed = visual.reshape(-1, width).index_select(0, source.flatten()).view_as(embeds)
    return torch.where(positions.unsqueeze(-1), placed.to(embeds.dtype), embeds)
