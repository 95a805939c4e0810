"""Show-o: pictures are codes of a vision tokenizer and codes are tokens of the vocabulary, as in other families of codes, but
a picture is not read in an order: some of its codes are masked, and predicted all at once from the others, which all see each
other.

The language model is transformers' Phi with norms of queries and keys. Sources: arXiv 2408.12528 and the official repository
(showlab/Show-o), whose sequences, masks and schedules these are. Unlike there, codes are made inside the pass, from pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PhiModel, PreTrainedModel

from megaunigame.attention.taps import Tap
from megaunigame.errors import ModelError
from megaunigame.models.base import Generators, evaluating
from megaunigame.models.causal.decoding import picker
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.causal.token_embedding import language_model_and_head
from megaunigame.models.causal.token_pictures import TokenPictures
from megaunigame.models.emphasis import emphasized
from megaunigame.models.row_noise import of_rows
from megaunigame.models.show_o import masking
from megaunigame.models.show_o.configuration import ShowOConfig, read_config
from megaunigame.models.show_o.folder import TOKENIZER_FOLDER
from megaunigame.models.show_o.keys import KEYS
from megaunigame.models.show_o.masks import open_picture, open_prefix
from megaunigame.models.show_o.processor import ShowOProcessor
from megaunigame.models.show_o.sizes import SIZES
from megaunigame.models.show_o.vq import Magvit
from megaunigame.models.weights.frozen import Frozen
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.step.inputs import IGNORE, GenerateInputs, GenerateOutput, UnderstandInputs


class ShowO(TokenPictures):
    """The trained part of a Show-o; parameter names are the official ones."""

    name = "show_o"
    groups = {
        "embedding": ("showo.model.embed_tokens.",),
        "lm": ("showo.model.layers.", "showo.model.final_layernorm."),
        "head": ("showo.lm_head.",),
    }
    sizes = SIZES
    keys = KEYS
    frozen_name = "vision tokenizer"
    frozen_folder = TOKENIZER_FOLDER
    frozen_hint = (
        "The vision tokenizer is published alone: copy pytorch_model.bin of showlab/magvitv2 to FOLDER/pytorch_model.bin."
    )
    only_causal = False
    predicts_whole = False
    configuration = staticmethod(read_config)
    open_processor = ShowOProcessor.from_folder

    config: ShowOConfig
    processor: ShowOProcessor
    frozen: Frozen[Magvit]
    showo: nn.ModuleDict

    @staticmethod
    def trained_parts(config: ShowOConfig) -> dict[str, nn.Module]:
        """transformers' language model, with an embedding and a head of ours."""
        language_model, head = language_model_and_head(PhiModel, config.get_text_config(), bias=True)
        return {"showo": nn.ModuleDict({"model": language_model, "lm_head": head})}

    @classmethod
    def files(cls, path: str) -> TensorFiles:
        """The files of both parts. Raises ModelError when the vision tokenizer is not there."""
        files = super().files(path)
        if not any(key.startswith("encoder.") for key in files.index):
            hint = cls.frozen_hint.replace("FOLDER", str(Path(path) / TOKENIZER_FOLDER))
            raise ModelError(f"{path} has no vision tokenizer. {hint}")
        return files

    def build_frozen(self) -> Magvit:
        """The vision tokenizer, its weights not loaded."""
        return Magvit(*self.config.tokenizer_sizes())

    @property
    def language_model(self) -> PreTrainedModel:
        return self.showo["model"]  # type: ignore[return-value]

    @property
    def lm_head(self) -> TokenHead:  # type: ignore[override]
        return self.showo["lm_head"]  # type: ignore[return-value]

    @property
    def calls_per_sample(self) -> int:
        """One per step, with and without guidance."""
        return self.config.generation_timesteps

    # Passes

    def opened(self, inputs: UnderstandInputs) -> Tensor:
        """(B, 1, S): every position sees the pictures, with all of their prefix."""
        return open_prefix(inputs.image_positions)

    def predict_codes(self, inputs: GenerateInputs, codes: Tensor, predict: bool) -> GenerateOutput:
        """The generate pass with given target codes (B, N), of which a random part is masked, in eval mode a fixed one.

        In training without a gradient all are masked: a picture is redrawn aside, for its hidden states, and those of codes
        that are read were never trained to predict anything.
        """
        if self.training and not torch.is_grad_enabled():
            return self.predict_masked(inputs, codes, torch.ones_like(codes, dtype=torch.bool), predict)
        if self.training:
            t, scores = masking.training_draw(len(codes), codes.shape[1], codes.device)
        else:
            t, scores = masking.evaluation_draw(inputs.keys, codes.shape[1], codes.device)
        counts = masking.masked_counts(self.config.mask_schedule, t, codes.shape[1])
        return self.predict_masked(inputs, codes, masking.masked_places(counts, scores), predict)

    def predict_masked(self, inputs: GenerateInputs, codes: Tensor, masked: Tensor, predict: bool) -> GenerateOutput:
        """The generate pass with target codes (B, N) of which those at `masked` (B, N) are not read; `inputs.targets` neither.

        Loss of a row: N times the mean cross-entropy of its masked codes, over the whole vocabulary and at their own positions,
        not the ones before. So rows weigh alike, however many of their codes are masked. The official mean is over all masked
        codes of the batch, and over the begin and end tokens of the pictures, which are read and therefore easy.
        """
        tap = self._prompt_tap(inputs, drawn=range(codes.shape[1]), seen=codes.shape[1] + 1)
        read = torch.where(masked, self.config.mask_token, codes + self.grid.first)
        embeds = self._embed_with(inputs, self._ended(read))
        lengths = self.lengths(inputs, self.grid.count + 1)
        hidden = self._picture_states(embeds, inputs.attention, inputs.image_positions, tap, lengths)
        labels = torch.where(masked, codes + self.grid.first, IGNORE)
        scored = self._scores(hidden.flatten(0, 1), labels.flatten())
        losses = emphasized(scored.losses.view(codes.shape), inputs.emphasis)
        loss = losses.sum(1) * codes.shape[1] / masked.sum(1)
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, loss, 0.0),
            hidden=hidden,
            target=codes,
            predictions=self.code_logits(hidden).argmax(-1) if predict else None,
            attention=None if tap is None else tap.shares(),
        )

    def _ended(self, tokens: Tensor) -> Tensor:
        """(B, N) tokens of a picture -> (B, N + 1)."""
        return F.pad(tokens, (0, 1), value=self.processor.format.end)

    def _picture_states(
        self,
        embeds: Tensor,
        attention: Tensor,
        image_positions: Tensor,
        tap: Tap | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        """Embedded requests (P tokens) and pictures with their ends, some codes masked, (B, P + N + 1, D) -> hidden
        states (B, N, D) of the pictures. `attention`, `image_positions` (B, P): of the requests. `lengths`: as in `_read`."""
        count = self.grid.count + 1
        opened = open_picture(image_positions, count)
        read = F.pad(attention, (0, count), value=True)
        return self._read(embeds, read, opened=opened, tap=tap, lengths=lengths)[:, -count:-1]

    # Pictures

    @torch.no_grad()
    def sample_codes(
        self,
        inputs: GenerateInputs,
        *,
        guidance: float,
        temperature: float,
        generator: Generators,
        lockstep: bool = True,
    ) -> Tensor:
        """(B, N) codes, drawn in `generation_timesteps` steps from all masked. Guidance 1 runs the conditional rows only.

        A step draws all masked codes; the least confident are masked again. The noise on the confidence gets smaller with each
        step, as in the official code: temperature times the product of (1 - k / steps) over the steps so far.
        """
        steps, grid, schedule = self.config.generation_timesteps, self.grid, self.config.mask_schedule
        picks = [picker(temperature, own) for own in of_rows(generator, len(inputs.tokens))]
        scale = temperature
        with evaluating(self):
            prompts, attention, images = self.embed(inputs), inputs.attention, inputs.image_positions
            if guidance != 1:
                without, read = self.unconditional(inputs)
                prompts, attention = torch.cat([prompts, without]), torch.cat([attention, read])
                images = torch.cat([images, torch.zeros_like(images)])
            codes = torch.zeros(len(inputs.tokens), grid.count, dtype=torch.long, device=prompts.device)
            masked = torch.ones_like(codes, dtype=torch.bool)
            for step in range(steps):
                self.leave_point()
                tokens = torch.where(masked, self.config.mask_token, codes + grid.first)
                drawing = self.language_model.embed_tokens(self._ended(tokens)).repeat(len(prompts) // len(tokens), 1, 1)
                states = self._picture_states(torch.cat([prompts, drawing], dim=1), attention, images)
                logits = self.code_logits(states).float()
                if guidance != 1:
                    conditional, uncond = logits.chunk(2)
                    logits = uncond + guidance * (conditional - uncond)
                # Row by row: a picker holds several copies of the logits.
                drawn = torch.stack([pick(row) for pick, row in zip(picks, logits, strict=True)])
                codes = torch.where(masked, drawn, codes)
                chances = logits.log_softmax(-1).gather(2, codes.unsqueeze(2)).squeeze(2).exp()
                chances = torch.where(masked, chances, torch.finfo(chances.dtype).max)
                scale *= 1 - (step + 1) / steps
                shaken = scale * masking.gumbel(tuple(codes.shape), generator).to(codes.device)
                masked = masking.least_confident(chances, masking.kept_masked(schedule, step, steps, masked), shaken)
        if not lockstep:
            for pick in picks:
                pick.check_finite()
        return codes

    def sample(
        self,
        inputs: GenerateInputs,
        *,
        guidance: float,
        temperature: float,
        generator: Generators,
        lockstep: bool = True,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] with classifier-free guidance.

        `guidance` is 1 + the `guidance_scale` of the official code. At `temperature` 1 codes are drawn as there; at 0 they are
        the likeliest ones, and nothing is random.
        """
        codes = self.sample_codes(inputs, guidance=guidance, temperature=temperature, generator=generator, lockstep=lockstep)
        return self.decode_each(codes)
