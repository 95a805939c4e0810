"""Show-o: sequences, labels, masks, logits and losses of the three layouts, prompts and guided logits of sampling, mask
schedules, the draw of masked codes, and which codes stay masked.

The official layouts have a fixed length and pad texts to it; the rows are made here from the same pieces as ours
(`models.show_o`), and read by our model with the masks of its passes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal import masks
from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.show_o import masking
from megaunigame.models.show_o.configuration import ShowOConfig
from megaunigame.models.show_o.keys import KEYS
from megaunigame.models.show_o.masks import open_picture, open_prefix
from megaunigame.models.show_o.model import ShowO
from megaunigame.step.inputs import GenerateInputs
from tests.parity.fixture import EXACT, Fixture, Tolerance, taken
from tests.passes import pass_inputs

LEFT_OUT = {
    "t2i.text_image_mask_1d": "the official code never uses it, and it is wrong: one too long, and ones at the padding",
    "draw.mask_ratio": "random numbers of the official run, which the other outputs of that draw are computed from",
}
SCHEDULE = "cosine"


def tolerance(name: str) -> Tolerance:
    if "loss" in name:
        return Tolerance(absolute=1e-5)
    if "logits" in name:
        return Tolerance(absolute=3e-5)
    if name.startswith("schedule.") or name.endswith(("step_mask_ratio", "embeddings_of_t2i")):
        return Tolerance(absolute=1e-6)
    return EXACT


def show_o_config(config: dict[str, Any]) -> ShowOConfig:
    """Neutral sizes of a fixture -> a configuration; the vision tokenizer plays no part."""
    language = config["language_model"]
    assert language["qk_layernorm"] and language["lm_head_bias"] and not language["tied_embeddings"]
    assert language["activation"] == "gelu_new"
    return ShowOConfig(
        **taken(config, "vocab_size", "codebook_size", llm_vocab_size="text_vocab_size", num_vq_tokens="num_image_tokens"),
        text_config={
            **taken(language, "hidden_size", "intermediate_size", "layer_norm_eps", "rope_theta", "partial_rotary_factor"),
            **taken(language, num_hidden_layers="num_layers", num_attention_heads="num_heads"),
            **taken(language, num_key_value_heads="num_kv_heads", max_position_embeddings="max_positions"),
        },
        vq_config={
            **{"code_bits": config["codebook_size"].bit_length() - 1, "base_channels": 32},
            **{f"{part}_{what}": [1] for part in ("encoder", "decoder") for what in ("multipliers", "blocks")},
        },
        mask_schedule=SCHEDULE,
        generation_timesteps=config["gen_steps"],
    )


def load(fixture: Fixture) -> ShowO:
    """The model of a fixture, from official keys; it has no tokenizer, only the places of codes."""
    config = show_o_config(fixture.config)
    grid = CodeGrid(1, config.num_vq_tokens, fixture.config["image_token_offset"], config.codebook_size)
    processor = SimpleNamespace(format=SimpleNamespace(grid=grid, end=fixture.config["special_token_ids"]["<|eoi|>"]))
    model = ShowO(config, processor, attention="sdpa", gradient_checkpointing=False)
    fixture.load(KEYS, model, None)
    return model.eval()


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    model = load(fixture)
    found = drawn_picture(fixture, model) | text_alone(fixture, model) | about_picture(fixture, model)
    found["total_loss_1_0.1_1"] = found["t2i.loss"] + 0.1 * found["lm.loss"] + found["mmu.loss"]
    return found | sampling(fixture, model) | masked(fixture) | official_draw(fixture)


def words(fixture: Fixture, layout: str) -> list[list[int]]:
    """The texts of a layout, without begin and end."""
    rows = zip(fixture.inputs[f"{layout}.text"].tolist(), fixture.inputs[f"{layout}.text_len"].tolist(), strict=True)
    return [row[:length] for row, length in rows]


def requests(fixture: Fixture, texts: list[list[int]]) -> Tensor:
    """(B, P): padding, t2i, bos, text, eos, soi; a text that is too long is cut before its end token."""
    config, ids = fixture.config, fixture.config["special_token_ids"]
    rows = []
    for text in texts:
        row = [ids["<|t2i|>"], config["bos_id"], *text][: config["max_text_len"]] + [config["eos_id"]]
        rows.append([ids["<|pad|>"]] * (config["max_text_len"] + 1 - len(row)) + row + [ids["<|soi|>"]])
    return torch.tensor(rows)


def read(model: ShowO, tokens: Tensor, allowed: Tensor) -> Tensor:
    """(B, S) tokens, (B, S, S) bool -> logits (B, S, vocabulary)."""
    embeds = model.language_model.embed_tokens(tokens)
    states = model.language_model(inputs_embeds=embeds, attention_mask=masks.additive(allowed, embeds.dtype), use_cache=False)
    return model.lm_head(states.last_hidden_state)


def request_mask(fixture: Fixture, model: ShowO, prompts: Tensor) -> Tensor:
    """(B, S, S): ours, where the official rows of padding see the padding before them."""
    after = model.grid.count + 1
    attention = F.pad(prompts != fixture.config["special_token_ids"]["<|pad|>"], (0, after), value=True)
    allowed = masks.causal(attention, None, open_picture(torch.zeros_like(prompts, dtype=torch.bool), after))
    order = torch.arange(attention.shape[1])
    among_padding = ~attention.unsqueeze(1) & ~attention.unsqueeze(2) & (order[None, :] <= order[:, None])
    return allowed | among_padding


def drawn_picture(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    config, codes, hidden = fixture.config, fixture.inputs["t2i.codes"], fixture.inputs["t2i.mask"].bool()
    prompts, end = requests(fixture, words(fixture, "t2i")), config["special_token_ids"]["<|eoi|>"]
    tokens = torch.cat([prompts, torch.where(hidden, model.config.mask_token, codes + model.grid.first)], dim=1)
    tokens = F.pad(tokens, (0, 1), value=end)
    allowed = request_mask(fixture, model, prompts)
    logits = read(model, tokens, allowed)
    labels = torch.cat([prompts, torch.where(hidden, codes + model.grid.first, config["ignore_id"])], dim=1)
    labels = F.pad(labels, (0, 1), value=end)
    labels = labels.masked_fill(labels == config["special_token_ids"]["<|pad|>"], config["ignore_id"])
    after = slice(config["max_text_len"] + 1, None)
    counts = torch.full((len(codes),), float(codes.shape[1]))
    pads = prompts == config["special_token_ids"]["<|pad|>"]
    inputs = pass_inputs(GenerateInputs, prompts, ~pads, counts=counts)
    rows = model.predict_masked(inputs, codes, hidden, predict=False).loss_sum / codes.shape[1]  # means of the rows
    return {
        "t2i.input_ids": tokens,
        "t2i.labels": labels,
        "t2i.visible": allowed,
        "t2i.logits": logits,
        "t2i.loss": F.cross_entropy(logits[:, after].flatten(0, 1), labels[:, after].flatten()),
        "t2i.loss_masked_positions_only": (rows * hidden.sum(1)).sum() / hidden.sum(),
        "embeddings_of_t2i": model.language_model.embed_tokens(tokens),
    }


def text_rows(fixture: Fixture, layout: str, front: list[list[int]], whole: int, end_stays: bool) -> tuple[Tensor, Tensor]:
    """(tokens, labels) of rows of `whole` tokens: `front`, bos, text, eos, padding. A text that is too long is cut."""
    config, pad = fixture.config, fixture.config["special_token_ids"]["<|pad|>"]
    rows, labels = [], []
    for before, text in zip(front, words(fixture, layout), strict=True):
        row = [*before, config["bos_id"], *text, config["eos_id"]]
        row = [*row[: whole - 1], config["eos_id"]] if end_stays and len(row) > whole else row[:whole]
        rows.append(row + [pad] * (whole - len(row)))
        labels.append([config["ignore_id"]] * len(before) + row[len(before) :] + [config["ignore_id"]] * (whole - len(row)))
    return torch.tensor(rows), torch.tensor(labels)


def text_scores(layout: str, model: ShowO, tokens: Tensor, labels: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    logits = read(model, tokens, allowed)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    found = {"input_ids": tokens, "labels": labels, "visible": allowed, "logits": logits, "loss": loss}
    return {f"{layout}.{name}": value for name, value in found.items()}


def text_alone(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    whole = fixture.config["max_text_len"] + model.grid.count + 3
    texts = words(fixture, "lm")
    tokens, labels = text_rows(fixture, "lm", [[]] * len(texts), whole, end_stays=False)
    allowed = masks.causal(torch.ones_like(tokens, dtype=torch.bool), None)
    return text_scores("lm", model, tokens, labels, allowed)


def about_picture(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    ids, codes = fixture.config["special_token_ids"], fixture.inputs["mmu.codes"] + model.grid.first
    front = [[ids["<|mmu|>"], ids["<|soi|>"], *row, ids["<|eoi|>"]] for row in codes.tolist()]
    whole = fixture.config["max_text_len"] + model.grid.count + 3
    tokens, labels = text_rows(fixture, "mmu", front, whole, end_stays=True)
    image = torch.zeros_like(tokens, dtype=torch.bool)
    image[:, 2 : 2 + model.grid.count] = True
    allowed = masks.causal(torch.ones_like(image), None, open_prefix(image))
    return text_scores("mmu", model, tokens, labels, allowed)


def sampling(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    texts, scale = words(fixture, "t2i"), fixture.config["guidance_scale"]
    prompts = torch.cat([requests(fixture, texts), requests(fixture, [[]] * len(texts))])
    hidden = torch.full((len(prompts), model.grid.count), model.config.mask_token)
    tokens = F.pad(torch.cat([prompts, hidden], dim=1), (0, 1), value=fixture.config["special_token_ids"]["<|eoi|>"])
    attention = prompts != fixture.config["special_token_ids"]["<|pad|>"]
    embeds, nothing = model.language_model.embed_tokens(tokens), torch.zeros_like(attention)
    conditional, without = model.code_logits(model._picture_states(embeds, attention, nothing)).chunk(2)
    steps, count = model.config.generation_timesteps, model.grid.count
    ratios = masking.SCHEDULES[SCHEDULE](torch.arange(1, steps + 1) / steps)
    return {
        "gen.cond_ids": tokens[: len(texts)],
        "gen.uncond_ids": tokens[len(texts) :],
        "gen.visible": request_mask(fixture, model, prompts),
        "gen.cfg_image_logits": without + (1 + scale) * (conditional - without),
        "gen.step_mask_ratio": ratios,
        "gen.step_mask_len_floor": torch.tensor(
            [masking.masked_after(SCHEDULE, k, steps, count) for k in range(steps)]
        ).float(),
    }


def masked(fixture: Fixture) -> dict[str, Tensor]:
    r = fixture.inputs["schedule.r"]
    least = masking.least_confident(fixture.inputs["topk.probs"], fixture.inputs["topk.mask_len"])
    return {
        **{f"schedule.{name}": schedule(r) for name, schedule in masking.SCHEDULES.items()},
        "train.num_masked_for_r": masking.masked_counts(SCHEDULE, r, fixture.config["num_image_tokens"]),
        "topk.masking_T0": least,
    }


def official_draw(fixture: Fixture) -> dict[str, Tensor]:
    """What our rule makes of the shares and the places that the official code drew."""
    drawn, config = fixture.outputs, fixture.config
    places = drawn["draw.labels"] != config["ignore_id"]
    codes = torch.where(places, drawn["draw.labels"], drawn["draw.input"])
    count = (codes.shape[1] * drawn["draw.mask_ratio"]).round().clamp_min(1)
    return {
        "draw.num_masked": count,
        "draw.input": torch.where(places, config["mask_token_id"], codes),
        "draw.labels": torch.where(places, codes, config["ignore_id"]),
    }
