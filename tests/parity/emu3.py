"""Emu3: logits with and without padding, the labels of the vision-only loss, both losses, and what sampling may draw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Emu3Config

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.emu3.keys import KEYS
from megaunigame.models.emu3.model import Emu3
from megaunigame.step.inputs import GenerateInputs
from tests.parity.fixture import EXACT, Fixture, Tolerance, taken
from tests.passes import pass_inputs


def tolerance(name: str) -> Tolerance:
    if name.startswith(("labels_", "constrained_")):
        return EXACT
    return Tolerance(absolute=1e-5) if name.startswith("loss_") else Tolerance(absolute=3e-5)


def emu3_config(config: dict[str, Any]) -> Emu3Config:
    """Neutral sizes of a fixture -> transformers' configuration; the vision tokenizer plays no part."""
    language, ids = config["language_model"], config["special_ids"]
    assert not language["tied_embeddings"]
    return Emu3Config(
        text_config={
            "vocab_size": config["vocab_size"],
            **taken(language, "hidden_size", "intermediate_size", "rms_norm_eps", num_hidden_layers="num_layers"),
            **taken(language, num_attention_heads="num_heads", num_key_value_heads="num_kv_heads"),
            "rope_parameters": {"rope_type": "default", "rope_theta": language["rope_theta"]},
            "max_position_embeddings": language["max_positions"],
            **taken(ids, pad_token_id="pad", bos_token_id="bos", eos_token_id="eos"),
        },
        tie_word_embeddings=False,
    )


def load(fixture: Fixture) -> Emu3:
    """The model of a fixture, from official keys; it has no tokenizer, only the places of codes."""
    config = fixture.config
    height, width = config["grid_hw"]
    grid = CodeGrid(height, width, config["image_token_offset"], config["codebook_size"], config["special_ids"]["eol"])
    processor = SimpleNamespace(format=SimpleNamespace(grid=grid))
    model = Emu3(emu3_config(config), processor, attention="sdpa", gradient_checkpointing=False)
    fixture.load(KEYS, model, None)
    return model.eval()


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    model, given = load(fixture), fixture.inputs
    tokens, attention = given["input_ids"], given["attention_mask"].bool()
    codes = given["codes"].flatten(1)
    start, drawn = prompt_length(tokens, codes, model.grid)
    counts = torch.full((len(tokens),), float(model.grid.count))
    prompts = pass_inputs(GenerateInputs, tokens[:, :start], attention[:, :start], counts=counts)
    generated = model.predict_codes(prompts, codes, predict=False)
    labels = torch.full_like(tokens, fixture.config["ignore_id"])
    labels[:, start + model.grid.places()] = drawn[:, model.grid.places()]
    embeds = model.language_model.embed_tokens(tokens)
    logits = model.lm_head(model._read(embeds, attention))
    # One official loss counts padding too, and what a padding position sees differs between the official mask and ours.
    model.language_model.set_attn_implementation("sdpa")  # which takes a padding mask
    official = model.language_model(inputs_embeds=embeds, attention_mask=attention).last_hidden_state
    everywhere = model.lm_head(official[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    real = int(attention[0].sum())
    alone = tokens[:, :real]
    return {
        "logits_valid": logits[attention],
        "unpadded.logits": model.lm_head(model._read(model.language_model.embed_tokens(alone), torch.ones_like(alone) > 0)),
        "labels_vision_only": labels,
        "loss_vision_only": generated.loss_sum.sum() / generated.target.numel(),
        "loss_every_token_incl_pad": everywhere.losses.mean(),
        "constrained_generation.allowed_min_max": allowed(fixture, model.grid),
    }


def prompt_length(tokens: Tensor, codes: Tensor, rows: CodeGrid) -> tuple[int, Tensor]:
    """Where the codes of the (equally long) rows begin; and the codes with their line ends, which must stand there."""
    drawn = rows.tokens(codes)
    start = int((tokens == drawn[0, 0]).nonzero()[0, 1])
    assert torch.equal(tokens[:, start : start + rows.length], drawn)
    return start, drawn


def allowed(fixture: Fixture, rows: CodeGrid) -> Tensor:
    """(steps, 2): smallest and largest token that may stand at each place after the prompt.

    Our sampling ends with the last code. What upstream puts after it is added from its rule, with its quirk: at multiples of
    the length of a line it asks for a line end even there.
    """
    ids, steps = fixture.config["special_ids"], len(fixture.outputs["constrained_generation.allowed_min_max"])
    line = [(rows.ids.start, rows.ids.stop - 1)] * rows.width + [(rows.line_end, rows.line_end)]
    found = line * rows.height + [(ids[name], ids[name]) for name in ("eof", "eoi", "eos")]
    while len(found) < steps:
        end = ids["eol"] if (len(found) + 1) % (rows.width + 1) == 0 else ids["pad"]
        found.append((end, end))
    return torch.tensor(found[:steps])
