"""Janus and Janus-Pro: a SigLIP tower to understand, codes of an image tokenizer to generate, one Llama for both.

The modules are transformers'; what is written here is how rows become sequences, the loss of generation (transformers
has none), and the way back from hidden states to pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedModel
from transformers.initialization import no_init_weights

from megaunigame.errors import ModelError
from megaunigame.models import masks
from megaunigame.models.base import Decoded, UnifiedModel
from megaunigame.models.gradient_scale import scale_gradient
from megaunigame.models.janus import decoding
from megaunigame.models.janus.checkpoint_keys import IMAGE_TOKENIZER, JanusWeights, open_weights
from megaunigame.models.janus.configuration import codes_per_image, read_config
from megaunigame.models.janus.processor import JanusProcessor
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.models.loading import check_names, check_shapes, load_plain
from megaunigame.models.tensor_files import TensorFiles
from megaunigame.passes import GENERATE, IGNORE, UNDERSTAND, PassInputs, PassOutput

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


class Janus(UnifiedModel):
    """The trained part of a Janus model; parameter names are those of transformers' JanusForConditionalGeneration.

    The image tokenizer is no submodule: `load_frozen` builds it, replicated and frozen.
    """

    processor: JanusProcessor

    def __init__(self, config: JanusConfig, processor: JanusProcessor, *, attention: str, gradient_checkpointing: bool):
        super().__init__()
        if attention not in ATTENTIONS:
            raise ModelError(f"Unknown attention {attention!r}; legal are {', '.join(ATTENTIONS)}.")
        if attention == "flash_attention_2" and find_spec("flash_attn") is None:
            raise ModelError("attention=flash_attention_2 needs the package flash_attn; type attention=sdpa.")
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
    def load(
        cls,
        path: str | Path,
        *,
        attention: str = "sdpa",
        max_length: int = 2048,
        gradient_checkpointing: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Janus:
        """The whole model in one process, without an engine; in eval mode."""
        model = cls.build(str(path), attention=attention, max_length=max_length, gradient_checkpointing=gradient_checkpointing)
        for parameter in model.parameters():  # not model.to(dtype): the rotary frequencies stay float32
            parameter.data = parameter.data.to(dtype)
        load_plain(model, cls.weights(str(path)), str(path))
        model.load_frozen(str(path), torch.device(device), dtype)
        return model.to(device).eval()

    @classmethod
    def weights(cls, path: str) -> JanusWeights:
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
    def frozen_weights(cls, path: str) -> JanusWeights:
        """The image tokenizer, under `model.vqmodel.`."""
        return open_weights(TensorFiles.of_folder(path), path)[1].prefixed(IMAGE_TOKENIZER)

    @classmethod
    def write_settings(cls, path: str, out: Path) -> None:
        """config.json in the Hugging Face form, whatever the form in `path`; the other small files as they are."""
        out.mkdir(parents=True, exist_ok=True)
        for file in Path(path).iterdir():
            if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
                shutil.copy(file, out / file.name)
        config = read_config(path)
        config.architectures = ["JanusForConditionalGeneration"]
        config.save_pretrained(out)

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
    def token_width(self) -> int:
        """D."""
        return self.language_model.config.hidden_size

    @property
    def codes_per_image(self) -> int:
        """N."""
        return codes_per_image(self.config)

    @property
    def calls_per_sample(self) -> int:
        """One per code."""
        return self.codes_per_image

    # Passes

    def forward(self, pass_name: str, inputs: PassInputs, predict: bool = False) -> PassOutput:
        """Run one pass. With `predict`, also return the greedy predictions."""
        if pass_name == UNDERSTAND:
            return self._understand(inputs, predict)
        if pass_name == GENERATE:
            return self._generate(inputs, predict)
        raise ValueError(f"Janus has no pass {pass_name!r}; it has {UNDERSTAND} and {GENERATE}.")

    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, T, D): tower and aligner; the tokens the language model reads."""
        features = self.model.vision_model(images.flatten(0, 1)).last_hidden_state
        return self.model.aligner(features).unflatten(0, images.shape[:2])

    def embed(self, inputs: PassInputs, tokens: Tensor | None = None) -> Tensor:
        """(B, S, D): embedded tokens, image slots overwritten by the visual tokens of the valid images."""
        embeds = self.language_model.embed_tokens(inputs.tokens if tokens is None else tokens)
        if inputs.images is None:
            return embeds
        assert inputs.image_valid is not None and inputs.image_slots is not None
        visual = self.visual_tokens(inputs.images)
        if inputs.visual_delta is not None:
            visual = visual + inputs.visual_delta.to(visual.dtype)
        if inputs.source_gradient is not None:
            visual = scale_gradient(visual, inputs.source_gradient)
        return place(embeds, visual, inputs.image_valid, inputs.image_slots)

    def _read(self, embeds: Tensor, attention: Tensor, segments: Tensor | None = None) -> Tensor:
        """(B, S, D) inputs -> (B, S, D) hidden states after the final norm."""
        positions = None
        if self._flash:
            if segments is not None:
                raise ModelError("Independent turns need attention=sdpa or attention=eager: flash takes no mask.")
            mask = attention
        elif segments is not None:
            mask = masks.additive(masks.causal(attention, segments), embeds.dtype)
            positions = masks.segment_positions(attention, segments)
        elif masks.ends_with_padding_only(attention):
            mask = None
        else:
            mask = masks.additive(masks.causal(attention, None), embeds.dtype)
        read = self.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        return read.last_hidden_state

    @property
    def _flash(self) -> bool:
        return self.language_model.config._attn_implementation.startswith("flash")

    def _understand(self, inputs: PassInputs, predict: bool) -> PassOutput:
        assert inputs.labels is not None
        hidden = self._read(self.embed(inputs), inputs.attention, inputs.segments)[:, :-1]
        labels = inputs.labels[:, 1:].flatten()
        # The head is by far the largest product of a row: it runs where a label is. It runs on every rank, in every
        # pass, hence the one position that is kept when nothing is labelled (its loss is exactly 0).
        labelled = (labels != IGNORE).nonzero().squeeze(1)
        if labelled.numel() == 0:
            labelled = labels.new_zeros(1)
        predictions = None
        if predict:
            everywhere = self.lm_head(hidden)
            predictions = torch.cat([inputs.tokens[:, :1], everywhere.argmax(-1)], dim=1)
            logits = everywhere.flatten(0, 1).index_select(0, labelled)
        else:
            logits = self.lm_head(hidden.flatten(0, 1).index_select(0, labelled))
        loss = F.cross_entropy(logits.float(), labels[labelled], ignore_index=IGNORE, reduction="none")
        spread = loss.new_zeros(labels.numel()).index_copy(0, labelled, loss)
        return PassOutput(loss_sum=spread.view(hidden.shape[:2]).sum(1), predictions=predictions)

    def _generate(self, inputs: PassInputs, predict: bool) -> PassOutput:
        assert inputs.targets is not None
        return self.predict_codes(inputs, self.encode_target(inputs.targets), predict)

    def predict_codes(self, inputs: PassInputs, codes: Tensor, predict: bool) -> PassOutput:
        """The generate pass with given target codes (B, N), teacher forced; `inputs.targets` is not read."""
        # The last code is predicted, never read.
        embeds = torch.cat([self.embed(inputs), self.embed_codes(codes[:, :-1])], dim=1)
        attention = F.pad(inputs.attention, (0, codes.shape[1] - 1), value=True)
        hidden = self._read(embeds, attention)[:, -codes.shape[1] :]
        logits = self.model.generation_head(hidden).float()
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape).sum(1)
        return PassOutput(
            loss_sum=torch.where(inputs.counts > 0, loss, 0.0),
            hidden=hidden,
            target=codes,
            predictions=logits.argmax(-1) if predict else None,
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

    def answer(self, inputs: PassInputs, *, max_new_tokens: int) -> Tensor:
        """(B, max_new_tokens): greedy continuation of left padded prompts; after the end token the row repeats it."""
        return decoding.answer(self, inputs, max_new_tokens=max_new_tokens)

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

    def add_lora(self, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int) -> None:
        """Adapters on the linear layers of the language model called `targets`; every other parameter is frozen."""
        linear = (name for name, module in self.language_model.named_modules() if isinstance(module, nn.Linear))
        legal = sorted({name.rpartition(".")[2] for name in linear})
        unknown = sorted(set(targets) - set(legal))
        if unknown or not targets:
            got = f"Unknown LoRA target {unknown[0]!r}" if unknown else "No LoRA targets"
            raise ModelError(f"{got}; the language model of Janus has: {', '.join(legal)}.")
        self.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
        # All ranks must start from the same adapters, and the caller's random state is not ours to move.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.language_model)

    def train(self, mode: bool = True) -> Janus:
        """A vision tower that is not trained stays in eval mode."""
        super().train(mode)
        tower = self.model.vision_model
        tower.train(mode and any(p.requires_grad for p in tower.parameters()))
        return self


def place(embeds: Tensor, visual: Tensor, valid: Tensor, slots: Tensor) -> Tensor:
    """Overwrite slots (B, S) of embeds (B, S, D), in order, by the visual tokens (B, I, T, D) of valid images (B, I).

    Index arithmetic only: shapes and the path of the gradient are the same whether or not a row has images, so tower
    and aligner take part in every pass of every rank (with a zero gradient where nothing was placed).
    """
    rows, images, length, width = visual.shape
    number = (slots.long().cumsum(1) - 1).clamp_min(0)  # how many-th visual token of the row belongs here
    valid_first = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    image = valid_first.gather(1, (number // length).clamp_max(images - 1))
    row = torch.arange(rows, device=embeds.device).unsqueeze(1)
    source = (row * images + image) * length + number % length
    placed = visual.reshape(-1, width).index_select(0, source.flatten()).view_as(embeds)
    return torch.where(slots.unsqueeze(-1), placed.to(embeds.dtype), embeds)
