"""Emu3: pictures are codes of a vision tokenizer, codes are tokens of the vocabulary, and one language model reads and
writes both. Nothing else is trained: no vision tower, no aligner, no separate head for codes.

The modules are transformers'. Sources: arXiv 2409.18869 and the official repository (baaivision/Emu3), whose sequences and
vision-only loss these are. Unlike there, codes are made inside the pass, from pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Emu3Config, Emu3TextModel, PreTrainedModel
from transformers.initialization import no_init_weights

from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.emphasis import emphasized
from megaunigame.models.emu3.code_grid import CodeGrid
from megaunigame.models.emu3.configuration import read_config, tensor_files
from megaunigame.models.emu3.keys import KEYS
from megaunigame.models.emu3.processor import Emu3Processor
from megaunigame.models.emu3.processor_files import export_processor, export_settings, page_for
from megaunigame.models.emu3.sizes import SIZES
from megaunigame.models.emu3.token_embedding import TokenEmbedding
from megaunigame.models.emu3.vq import VisionTokenizer
from megaunigame.models.weights.frozen import Frozen
from megaunigame.step.inputs import GenerateInputs, GenerateOutput, Taps, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND


class Emu3(CodeModel):
    """The trained part of an Emu3; parameter names are those of transformers' Emu3ForConditionalGeneration."""

    name = "emu3"
    groups = {
        "embedding": ("model.text_model.embed_tokens.",),
        "lm": ("model.text_model.layers.", "model.text_model.norm."),
        "head": ("lm_head.",),
    }
    trained_by_default = ("embedding", "lm", "head")
    passes = {UNDERSTAND: ("embedding", "lm", "head"), GENERATE: ("embedding", "lm", "head")}
    sizes = SIZES
    keys = KEYS
    frozen_name = "vision tokenizer"
    configuration = staticmethod(read_config)
    open_processor = Emu3Processor.from_folder
    files = staticmethod(tensor_files)
    in_transformers = True
    write_settings = staticmethod(export_settings)
    write_processor = staticmethod(export_processor)

    config: Emu3Config
    processor: Emu3Processor
    frozen: Frozen[VisionTokenizer]
    model: nn.ModuleDict

    @classmethod
    def usage_page(cls, path: str) -> str:
        return page_for(read_config(path), super().usage_page(path))

    @staticmethod
    def trained_parts(config: Emu3Config) -> dict[str, nn.Module]:
        """transformers' language model, with an embedding and a head of ours."""
        text = config.text_config
        with no_init_weights():
            language_model = Emu3TextModel(text)
            language_model.embed_tokens = TokenEmbedding(text.vocab_size, text.hidden_size, text.pad_token_id)
            head = TokenHead(text.hidden_size, text.vocab_size)
        return {"model": nn.ModuleDict({"text_model": language_model}), "lm_head": head}

    def build_frozen(self) -> VisionTokenizer:
        """The vision tokenizer, its weights not loaded."""
        return VisionTokenizer(self.config.vq_config)

    @property
    def vision_tokenizer(self) -> VisionTokenizer:
        return self.frozen.module

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model["text_model"]  # type: ignore[return-value]

    @property
    def grid(self) -> CodeGrid:
        """Layout of a generated picture in the sequence."""
        return self.processor.format.grid

    @property
    def codes_per_image(self) -> int:
        """N."""
        return self.grid.count

    @property
    def calls_per_sample(self) -> int:
        """One per code and line end; the last line end is not read."""
        return self.grid.length - 1

    # Passes

    def visual_tokens(self, images: Tensor, gradient_rows: slice | None = None) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N, D): embedded codes, without line ends, which the language model reads as text.

        Choosing a code has no gradient. If `images` require grad (generated pictures can), the gradient flows through the
        nearest codes (soft assignment): see `VisionTokenizer.neighbors` and `TokenEmbedding`. The values are the same. It is
        costly, so `gradient_rows` says which rows need it.
        """
        pixels, first = images.flatten(0, 1), self.grid.first
        if not (images.requires_grad and torch.is_grad_enabled()):
            tokens = self.language_model.embed_tokens(self.vision_tokenizer.encode(pixels).flatten(1) + first)
            return tokens.unflatten(0, images.shape[:2])
        rows, per_row = slice(0, len(images)) if gradient_rows is None else gradient_rows, images.shape[1]
        at = slice(rows.start * per_row, rows.stop * per_row)
        near, shares = (each.flatten(1, 2) for each in self.vision_tokenizer.neighbors(pixels[at]))
        others = (pixels[: at.start], pixels[at.stop :])
        before, after = (self.vision_tokenizer.encode(some).flatten(1) if len(some) else near[:0, :, 0] for some in others)
        codes = torch.cat([before, near[..., 0], after])
        return self.language_model.embed_tokens(codes + first, near + first, shares, at).unflatten(0, images.shape[:2])

    def question_tokens(self, inputs: UnderstandInputs) -> Tensor:
        """(B, I, N, D): the visual tokens of the images of an understand pass."""
        return self.visual_tokens(inputs.images, inputs.gradient_rows)

    def predict_codes(self, inputs: GenerateInputs, codes: Tensor, predict: bool) -> GenerateOutput:
        """The generate pass with given target codes (B, N), teacher forced; `inputs.targets` is not read.

        The loss is on the codes, over the whole vocabulary. Line ends are read, not learned.
        """
        grid = self.grid
        read = grid.tokens(codes)[:, :-2]  # the last code and its line end are never read
        embeds = torch.cat([self.embed(inputs), self.language_model.embed_tokens(read)], dim=1)
        attention = F.pad(inputs.attention, (0, read.shape[1]), value=True)
        tap = self._prompt_tap(inputs, drawn=grid.places_before(grid.count - 1))
        # The state at a position predicts the next token: from the last token of the prompt to the last but one code.
        states = self._read(embeds, attention, front_padding=inputs.front_padding, tap=tap)[:, -read.shape[1] - 1 :]
        hidden = states.index_select(1, grid.places(states.device))
        scored = self.lm_head(hidden.flatten(0, 1), (codes + grid.first).flatten())
        losses = emphasized(scored.losses.view(codes.shape), inputs.emphasis)
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, losses.sum(1), 0.0),
            hidden=hidden,
            target=codes,
            predictions=self.code_logits(hidden).argmax(-1) if predict else None,
            attention=None if tap is None else tap.shares(),
        )

    def code_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): logits of the codes only."""
        return self.lm_head(hidden, ids=self.grid.ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): codes as the language model reads them."""
        return self.language_model.embed_tokens(codes + self.grid.first)

    def _prompt_text(self, inputs: GenerateInputs, taps: Taps) -> Tensor:
        """(B, S): text before the picture, without the line ends of a source picture."""
        return super()._prompt_text(inputs, taps) & (inputs.tokens != self.grid.line_end)

    # Pictures

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N) codes. No gradient."""
        return self.vision_tokenizer.encode(pixels).flatten(1)

    def codebook(self) -> Tensor:
        """(V, C) float32."""
        return self.vision_tokenizer.codebook()

    def expected_codes(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> likeliest codes (B, N), mean rows of the codebook (B, N, C); never all logits at once."""
        expected = self.lm_head(hidden.flatten(0, 1), ids=self.grid.ids, table=self.codebook())
        return expected.likeliest.view(hidden.shape[:2]), expected.mean.unflatten(0, hidden.shape[:2])

    def pixels_of(self, codes: Tensor, mean: Tensor | None = None) -> Tensor:
        """(B, N) codes -> (B, 3, H, W), not clamped; with `mean` (B, N, C) rows of the codebook, the gradient is theirs."""
        tokenizer, arranged = self.vision_tokenizer, self.grid.arranged
        if mean is None:
            return tokenizer.decode_codes(arranged(codes))
        return tokenizer.decode_mean(arranged(codes), arranged(mean))

    def as_source(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> resized to source pictures, in [-1, 1]; differentiable."""
        size = self.processor.source_size
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bilinear")
        return pixels

    @property
    def lines(self) -> tuple[int, Tensor]:
        """Only codes are drawn; line ends are inserted."""
        embed_tokens = self.language_model.embed_tokens
        return self.grid.width, embed_tokens(torch.tensor(self.grid.line_end, device=embed_tokens.weight.device))
