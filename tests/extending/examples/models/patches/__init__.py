"""A family as small as one can be: a Llama that reads pictures as patches of color and draws patches of gray."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.text.sequences import TokenSequence
from megaunigame.models.weights.renamed import KeyTable
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.step.requests import GENERATE, UNDERSTAND

SIDE, PATCHES, LEVELS = 16, 2, 8
"""Pixels and patches along an edge of every picture; levels of gray."""


class Grays(nn.Module):
    """The frozen tokenizer: (B, 3, H, W) in [-1, 1] -> one of LEVELS grays per patch (B, N). It has no weights."""

    def forward(self, pixels: Tensor) -> Tensor:
        grays = F.adaptive_avg_pool2d(pixels, PATCHES).mean(1).flatten(1)
        return ((grays + 1) / 2 * (LEVELS - 1)).round().long()


class PatchesFormat(ConversationFormat):
    """`[<img>patches</img>]question>answer<eos>`, and `prompt><img>` before codes."""

    family = "Patches"
    begin_of_image, image_token, end_of_image = "<img>", "<patch>", "</img>"

    def __init__(self, tokenizer, where: str):
        super().__init__(tokenizer, PATCHES**2, where)
        self.head = self.opening = self.next_opening = []
        self.closing = self.encode(">")
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def request(self, prompt: str, source: bool) -> str:
        return prompt

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        empty = TokenSequence()
        empty.add(self.request_closing)
        return empty


class Patches(CodeModel):
    """Every color of a patch is a visual token, every gray a code."""

    name = "patches"
    groups = {"vision": ("look.",), "lm": ("model.", "lm_head."), "drawing": ("read_gray.", "write_gray.")}
    trained_by_default = ("lm", "drawing")
    passes = {UNDERSTAND: ("vision", "lm"), GENERATE: ("vision", "lm", "drawing")}
    seeing = ("vision",)
    keys = KeyTable("Patches", lambda key: key, unused=re.compile("-"), frozen="grays.", expected="the names of its modules")
    frozen_name = "grays"
    codes_per_image = PATCHES**2

    @classmethod
    def open_processor(cls, path: str, *, max_length: int) -> RowProcessor:
        tokenizer, sizes = read_tokenizer(Path(path)), {"image_size": SIDE, "source_size": SIDE, "max_length": max_length}
        after = {"after_prompt": cls.codes_per_image, "loss_positions": cls.codes_per_image}
        return RowProcessor(tokenizer, PatchesFormat(tokenizer, path), **sizes, **after, mean=HALF, std=HALF)

    @staticmethod
    def configuration(path: str) -> LlamaConfig:
        return LlamaConfig.from_pretrained(path)

    @staticmethod
    def trained_parts(config: LlamaConfig) -> dict[str, nn.Module]:
        width = config.hidden_size
        language = {"model": LlamaModel(config), "lm_head": TokenHead(width, config.vocab_size)}
        grays = {"read_gray": nn.Embedding(LEVELS, width), "write_gray": nn.Linear(width, LEVELS)}
        return {"look": nn.Linear(3, width), **language, **grays}

    @property
    def language_model(self) -> LlamaModel:
        return self.model

    def unreached(self, pass_name: str) -> tuple[str, ...]:
        return ("lm_head.",) if pass_name == GENERATE else ()

    def visual_tokens(self, images: Tensor) -> Tensor:
        colors = F.adaptive_avg_pool2d(images.flatten(0, 1), PATCHES).flatten(2).transpose(1, 2)
        return self.look(colors.to(self.look.weight.dtype)).unflatten(0, images.shape[:2])

    def code_logits(self, hidden: Tensor) -> Tensor:
        return self.write_gray(hidden)

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.read_gray(codes)

    def build_frozen(self) -> Grays:
        return Grays()

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        return self.frozen.module(pixels)

    def codebook(self) -> Tensor:
        return torch.linspace(-1, 1, LEVELS, device=self.lm_head.weight.device).unsqueeze(1)

    def pixels_of(self, codes: Tensor, mean: Tensor | None = None) -> Tensor:
        grays = self.codebook()[codes]
        if mean is not None:
            grays = mean + (grays - mean).detach()
        return F.interpolate(grays.view(-1, 1, PATCHES, PATCHES), (SIDE, SIDE)).expand(-1, 3, -1, -1)
