"""Emu3.5: hidden states, logits with padding and with explicit positions, losses of all tokens and of codes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3Config

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.emu3_5.configuration import Emu3p5Config, VisionConfig
from megaunigame.models.emu3_5.keys import KEYS
from megaunigame.models.emu3_5.model import Emu3p5
from megaunigame.step.inputs import IGNORE
from tests.parity.fixture import Fixture, Tolerance, taken

NO_VISION = VisionConfig(64, 8, 16, 32, (1, 1), 1, (), 16)
"""The vision tokenizer plays no part here."""


def tolerance(name: str) -> Tolerance:
    return Tolerance(absolute=1e-5) if name.startswith("loss_") else Tolerance(absolute=3e-5)


def text_config(config: dict[str, Any]) -> Qwen3Config:
    """Neutral sizes of a fixture -> transformers' configuration."""
    language = config["language_model"]
    assert not language["lm_head_bias"]
    same = "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "attention_bias"
    return Qwen3Config(
        vocab_size=config["vocab_size"],
        **taken(language, *same, num_hidden_layers="num_layers", num_attention_heads="num_heads"),
        **taken(language, num_key_value_heads="num_kv_heads", hidden_act="activation"),
        **taken(language, max_position_embeddings="max_positions", tie_word_embeddings="tied_embeddings"),
        rope_parameters={"rope_type": "default", "rope_theta": language["rope_theta"]},
    )


def load(fixture: Fixture) -> Emu3p5:
    """The model of a fixture, from official keys; it has no tokenizer, only the place of codes."""
    first, end = fixture.config["image_id_range"]
    processor = SimpleNamespace(format=SimpleNamespace(grid=CodeGrid(1, 1, first, end - first)))
    config = Emu3p5Config(text_config(fixture.config), NO_VISION)
    model = Emu3p5(config, processor, attention="sdpa", gradient_checkpointing=False)  # type: ignore[arg-type]
    fixture.load(KEYS, model, None)
    return model.eval()


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    assert fixture.config["ignore_id"] == IGNORE
    model, given = load(fixture), fixture.inputs
    layers: list[Tensor] = []
    hook = model.layers()[0].register_forward_hook(lambda module, read, made: layers.append(made))
    embeds = model.language_model.embed_tokens(given["input_ids"])
    everywhere = torch.ones_like(given["input_ids"], dtype=torch.bool)
    hidden = model._read(embeds, everywhere)
    hook.remove()
    padded, attention = given["padded.input_ids"], given["padded.attention_mask"].bool()
    behind = model._read(model.language_model.embed_tokens(padded), attention)
    elsewhere = model._read(embeds, everywhere, front_padding=False, positions=given["positions"])
    codes = given["labels_image_only"]
    labeled = codes[:, 1:] != IGNORE
    before = hidden[:, :-1][labeled]
    return {
        "hidden_after_layer_1": layers[0],
        "hidden_final_normed": hidden,
        "logits": model.lm_head(hidden),
        "padded.logits_valid": model.lm_head(behind)[attention],
        "explicit_positions.logits": model.lm_head(elsewhere),
        "loss_all": mean_loss(model, hidden, given["labels_all"]),
        "loss_image_only": mean_loss(model, hidden, codes),
        "loss_image_only_restricted_vocab": F.cross_entropy(
            model.code_logits(before), codes[:, 1:][labeled] - model.grid.first
        ),
    }


def mean_loss(model: Emu3p5, hidden: Tensor, labels: Tensor) -> Tensor:
    """The mean over labeled positions, each predicted by the one before it."""
    labels = labels[:, 1:].flatten()
    losses = model.lm_head(hidden[:, :-1].flatten(0, 1), labels).losses
    return losses.sum() / (labels != IGNORE).sum()
