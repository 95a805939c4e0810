"""Janus and Janus-Pro: a SigLIP tower to understand, codes of an image tokenizer to generate, one Llama for both.

The modules are transformers'; what is written here is how rows become sequences, the loss of generation (transformers
has none), and the way back from hidden states to pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedModel
from transformers.initialization import no_init_weights

from megaunigame.models.base import Decoded
from megaunigame.models.causal import CausalModel, check_attention
from megaunigame.models.janus import decoding
from megaunigame.models.janus.checkpoint_keys import IMAGE_TOKENIZER, open_weights
from megaunigame.models.janus.configuration import codes_per_image, read_config
from megaunigame.models.janus.processor import JanusProcessor
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.models.loading import check_names, check_shapes, load_plain
from megaunigame.models.renamed_weights import RenamedWeights
from megaunigame.models.settings_files import copy_settings
from megaunigame.models.tensor_files import TensorFiles
from megaunigame.passes import UNDERSTAND, PassInputs, PassOutput


class Janus(CausalModel):
    """The trained part of a Janus model; parameter names are those of transformers' JanusForConditionalGeneration.

    The image tokenizer is no submodule: `load_frozen` builds it, replicated and frozen.
    """

    processor: JanusProcessor

    def __init__(self, config: JanusConfig, processor: JanusProcessor, *, attention: str, gradient_checkpointing: bool):
        super().__init__()
        check_attention(attention)
        with no_init_weights():
            network = JanusForConditionalGeneration(config)
        del network.model.vqmodel
        self.config = config
        self.processor = processor
        self.model = network.model
        self.lm_head = network.lm_head
        self._frozen: list[ImageTokenizer] = []  # a plain list keeps it out of the module tree
        for part in (self.model.language_model, self.model.vision_model):
            part.set_attn_implementation(attention)
            if gradient_checkpointing:
                part.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    @classmethod
    def build(cls, path: str, *, attention: str, max_length: int, gradient_checkpointing: bool) -> Janus:
        """Construct from `path`/config.json and the tokenizer files; the weights are left uninitialised."""
        processor = JanusProcessor.from_folder(path, max_length=max_length)
        config = read_config(path)
        return cls(config, processor, attention=attention, gradient_checkpointing=gradient_checkpointing)

    @classmethod
    def weights(cls, path: str) -> RenamedWeights:
        """Lazily read weights under our parameter names, names and shapes checked against `path`/config.json.

        Raises ModelError for the checkpoint of another model. Call it outside the engine's partitioning context.
        """
        weights, _ = open_weights(TensorFiles.of_folder(path), path)
        with torch.device("meta"), no_init_weights():
            network = JanusForConditionalGeneration(read_config(path))
        del network.model.vqmodel
        expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
        check_names(expected, weights.names(), path)
        check_shapes(expected, {name: weights.shape(name) for name in expected}, path)
        return weights

    @classmethod
    def frozen_weights(cls, path: str) -> RenamedWeights:
        """The image tokenizer, under `model.vqmodel.`."""
        return open_weights(TensorFiles.of_folder(path), path)[1].prefixed(IMAGE_TOKENIZER)

    @classmethod
    def write_settings(cls, path: str, out: Path) -> None:
        """config.json in the Hugging Face form, whatever the form in `path`; the other small files as they are."""
        copy_settings(Path(path), out)
        config = read_config(path)
        config.architectures = ["JanusForConditionalGeneration"]
        config.save_pretrained(out)

    @classmethod
    def language_layers(cls, path: str) -> int:
        """Layers of the language model in `path`."""
        return read_config(path).text_config.num_hidden_layers

    def load_frozen(self, path: str, device: torch.device, dtype: torch.dtype) -> None:
        """Build and load the image tokenizer, outside the module tree."""
        _, weights = open_weights(TensorFiles.of_folder(path), path)
        tokenizer = ImageTokenizer(self.config.vq_config)
        load_plain(tokenizer, weights, f"The image tokenizer in {path}")
        self.set_image_tokenizer(tokenizer.to(device=device, dtype=dtype))

    def set_image_tokenizer(self, tokenizer: ImageTokenizer) -> None:
        """Use `tokenizer` (on the right device, in the right dtype), frozen."""
        self._frozen[:] = [tokenizer.eval().requires_grad_(False)]

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        if not self._frozen:
            raise RuntimeError("The image tokenizer is not loaded: call load_frozen(path, device, dtype) first.")
        return self._frozen[0]

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model.language_model

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.model.vision_model

    @property
    def codes_per_image(self) -> int:
        """N."""
        return codes_per_image(self.config)

    @property
    def calls_per_sample(self) -> int:
        """One per code."""
        return self.codes_per_image

    # Passes

    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, T, D): tower and aligner; the tokens the language model reads."""
        features = self.model.vision_model(images.flatten(0, 1)).last_hidden_state
        return self.model.aligner(features).unflatten(0, images.shape[:2])

    def _generate(self, inputs: PassInputs, predict: bool) -> PassOutput:
        assert inputs.targets is not None
        return self.predict_codes(inputs, self.encode_target(inputs.targets), predict)

    def predict_codes(self, inputs: PassInputs, codes: Tensor, predict: bool) -> PassOutput:
        """The generate pass with given target codes (B, N), teacher forced; `inputs.targets` is not read."""
        # The last code is predicted, never read.
        embeds = torch.cat([self.embed(inputs), self.embed_codes(codes[:, :-1])], dim=1)
        attention = F.pad(inputs.attention, (0, codes.shape[1] - 1), value=True)
        tap = self._prompt_tap(inputs, drawn=codes.shape[1] - 1, queries=codes.shape[1] - 1)
        hidden = self._read(embeds, attention, tap=tap)[:, -codes.shape[1] :]
        logits = self.model.generation_head(hidden).float()
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape).sum(1)
        return PassOutput(
            loss_sum=torch.where(inputs.counts > 0, loss, 0.0),
            hidden=hidden,
            target=codes,
            predictions=logits.argmax(-1) if predict else None,
            attention=None if tap is None else tap.shares(),
        )

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(B, N) -> (B, N, D): codes as the language model reads them."""
        return self.model.generation_aligner(self.model.generation_embeddings(codes))

    # Pictures

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N) codes. No gradient."""
        return self.image_tokenizer.encode(pixels)

    def decode(self, hidden: Tensor, delta: Tensor | None = None, anchor: Tensor | None = None) -> Decoded:
        """(B, N, D) hidden states of the generate pass, plus `delta` -> pixels (B, 3, H, W) in [-1, 1], differentiable.

        Straight-through: the pixels are those of the chosen codes, the gradient that of the mean code. The chosen code is
        the likeliest; with `anchor` (B, N codes) only where the perturbation changes which is the likeliest, else the anchor.
        """
        moved = hidden if delta is None else hidden + delta.to(hidden.dtype)
        logits = self.model.generation_head(moved)
        codes = logits.argmax(-1)
        # Also without delta: on every rank the same calls. It costs a head on N positions, without its backward.
        with torch.no_grad():
            changed = codes != self.model.generation_head(hidden).argmax(-1)
        chosen = codes if anchor is None else torch.where(changed, codes, anchor)
        pixels = self.image_tokenizer.decode_logits(logits, chosen).float().clamp(-1, 1)
        return Decoded(pixels, changed.float().mean(1))

    def as_source(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> normalised as the vision tower expects; differentiable."""
        return self.processor.normalise_source((pixels + 1) * 127.5)

    @torch.no_grad()
    def decode_target(self, target: Tensor) -> Tensor:
        """(B, N) codes -> (B, 3, H, W) in [-1, 1]."""
        return self.image_tokenizer.decode_codes(target).float().clamp(-1, 1)

    def sample(
        self,
        inputs: PassInputs,
        *,
        guidance: float,
        temperature: float,
        generator: torch.Generator,
        disturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] with classifier-free guidance; temperature 0 takes the likeliest codes."""
        pick = decoding.picker(temperature, generator)
        return self.decode_target(self.sample_codes(inputs, guidance=guidance, pick=pick, disturb=disturb))

    def sample_codes(
        self,
        inputs: PassInputs,
        *,
        guidance: float,
        pick: Callable[[Tensor], Tensor],
        disturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """(B, N) codes; `pick` turns guided logits (B, V) into codes (B,). N calls of the language model."""
        return decoding.sample_codes(self, inputs, guidance=guidance, pick=pick, disturb=disturb)

    # Training

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Groups of parameters by prefix; every parameter is in exactly one."""
        return {
            "vision": ("model.vision_model.",),
            "aligner": ("model.aligner.",),
            "lm": ("model.language_model.", "lm_head."),
            "generation_embed": ("model.generation_embeddings.", "model.generation_aligner."),
            "generation_head": ("model.generation_head.",),
        }

    def groups_of_pass(self, pass_name: str, takes_images: bool) -> Sequence[str]:
        """The head of the other task takes no part; tower and aligner only where rows carry images."""
        seeing = ("vision", "aligner") if takes_images else ()
        return (*seeing, "lm") if pass_name == UNDERSTAND else (*seeing, "lm", "generation_embed", "generation_head")

    def default_trainable(self) -> Sequence[str]:
        return ("aligner", "lm", "generation_embed", "generation_head")
