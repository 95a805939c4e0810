"""Show-o: sequences, labels, masks, logits and losses of the three layouts, prompts and guided logits of sampling, mask
schedules, the draw of masked codes, and which codes stay masked.

Sequences are made by our format, from a tokenizer that spells token k of the text as one character. The official layouts have
a fixed length: padding is added here, as is the label of the token that begins a text, which the official code learns too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.models.causal import masks
from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.token_format import CodeSquares
from megaunigame.models.show_o import masking
from megaunigame.models.show_o.configuration import ShowOConfig
from megaunigame.models.show_o.conversation import END, ShowOFormat, add_special_tokens
from megaunigame.models.show_o.keys import KEYS
from megaunigame.models.show_o.masks import open_picture
from megaunigame.models.show_o.model import ShowO
from megaunigame.models.show_o.processor import ShowOProcessor
from megaunigame.models.text.sequences import TokenSequence
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
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


def character(token: int) -> str:
    """How token number `token` of the text is written."""
    return chr(0xF0000 + token)


def processor_of(fixture: Fixture) -> ShowOProcessor:
    """Ours, for texts of `character`s; what our format writes around questions has no tokens."""
    config, codes = fixture.config, fixture.config["num_image_tokens"]
    assert config["bos_id"] == config["eos_id"]
    vocabulary = {END if id == config["eos_id"] else character(id): id for id in range(config["text_vocab_size"])}
    text = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))  # without an unknown token: other characters are left out
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=text, bos_token=END, eos_token=END)
    add_special_tokens(tokenizer, config["text_vocab_size"], str(fixture.folder))
    conversation = ShowOFormat(tokenizer, CodeSquares(config["codebook_size"], 1, 2, 2), "", str(fixture.folder))
    # The codes of a fixture need not make a square.
    conversation.grid = CodeGrid(1, codes, conversation.grid.first, conversation.grid.codebook)
    conversation.visual_tokens = codes
    return ShowOProcessor(conversation, max_length=config["max_text_len"] + 2 + conversation.after_prompt)


def load(fixture: Fixture) -> ShowO:
    """The model of a fixture, from official keys."""
    config = show_o_config(fixture.config)
    model = ShowO(config, processor_of(fixture), attention="sdpa", gradient_checkpointing=False)
    fixture.load(KEYS, model, None)
    return model.eval()


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    model = load(fixture)
    found = drawn_picture(fixture, model) | text_alone(fixture, model) | about_picture(fixture, model)
    found["total_loss_1_0.1_1"] = found["t2i.loss"] + 0.1 * found["lm.loss"] + found["mmu.loss"]
    return found | sampling(fixture, model) | masked(fixture) | official_draw(fixture, model)


def texts_of(fixture: Fixture, layout: str) -> list[str]:
    """The texts of a layout."""
    rows = zip(fixture.inputs[f"{layout}.text"].tolist(), fixture.inputs[f"{layout}.text_len"].tolist(), strict=True)
    return ["".join(map(character, row[:length])) for row, length in rows]


def requests(fixture: Fixture, inputs: GenerateInputs) -> GenerateInputs:
    """The same requests, padded in front to the length of the official ones."""
    missing = fixture.config["max_text_len"] + 2 - inputs.tokens.shape[1]
    pad = fixture.config["special_token_ids"]["<|pad|>"]
    tokens = F.pad(inputs.tokens, (missing, 0), value=pad)  # below 0: our rounding of lengths is cut off
    attention = F.pad(inputs.attention, (missing, 0), value=False)
    assert attention.sum() == inputs.attention.sum()
    counts = torch.full((len(tokens),), float(fixture.config["num_image_tokens"]))
    return pass_inputs(GenerateInputs, tokens, attention, counts=counts)


def read(model: ShowO, tokens: Tensor, allowed: Tensor) -> Tensor:
    """(B, S) tokens, (B, S, S) bool -> logits (B, S, vocabulary)."""
    embeds = model.language_model.embed_tokens(tokens)
    states = model.language_model(inputs_embeds=embeds, attention_mask=masks.additive(allowed, embeds.dtype), use_cache=False)
    return model.lm_head(states.last_hidden_state)


def request_mask(model: ShowO, inputs: GenerateInputs) -> Tensor:
    """(B, S, S): ours, where the official rows of padding see the padding before them."""
    after = model.grid.count + 1
    attention = F.pad(inputs.attention, (0, after), value=True)
    allowed = masks.causal(attention, None, open_picture(inputs.image_positions, after))
    order = torch.arange(attention.shape[1])
    among_padding = ~attention.unsqueeze(1) & ~attention.unsqueeze(2) & (order[None, :] <= order[:, None])
    return allowed | among_padding


def drawn_picture(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    config, codes, hidden = fixture.config, fixture.inputs["t2i.codes"], fixture.inputs["t2i.mask"].bool()
    inputs = requests(fixture, model.processor.generate_prompts(texts_of(fixture, "t2i")))
    prompts = inputs.tokens
    tokens = torch.cat([prompts, torch.where(hidden, model.config.mask_token, model.grid.tokens(codes))], dim=1)
    tokens = model._ended(tokens)
    allowed = request_mask(model, inputs)
    logits = read(model, tokens, allowed)
    # The official labels hold whatever is read too: prompts, and the begin and end tokens of the picture.
    labels = torch.cat([prompts, torch.where(hidden, model.grid.tokens(codes), config["ignore_id"])], dim=1)
    labels = model._ended(labels.masked_fill(labels == model.processor.pad_id, config["ignore_id"]))
    after = slice(config["max_text_len"] + 1, None)
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


def text_rows(fixture: Fixture, model: ShowO, sequences: list[TokenSequence]) -> UnderstandInputs:
    """Conversations of our format as official rows, which have one length and whose padding is read as text is."""
    whole, ignore = fixture.config["max_text_len"] + model.grid.count + 3, fixture.config["ignore_id"]
    columns: dict[str, list[Any]] = {"tokens": [], "labels": [], "image_positions": []}
    for sequence in sequences:
        begin = next(place for place, label in enumerate(sequence.labels) if label != ignore) - 1
        labels = [*sequence.labels[:begin], sequence.tokens[begin], *sequence.labels[begin + 1 :]]
        for name, column, fill in (
            ("tokens", sequence.tokens, model.processor.pad_id),
            ("labels", labels, ignore),
            ("image_positions", sequence.image, False),
        ):
            columns[name].append([*column, *[fill] * (whole - len(sequence))])
    tokens, labels, image = map(torch.tensor, columns.values())
    return pass_inputs(UnderstandInputs, tokens, labels=labels, image_positions=image)


def text_scores(layout: str, model: ShowO, inputs: UnderstandInputs) -> dict[str, Tensor]:
    tokens, labels = inputs.tokens, inputs.labels
    allowed = masks.causal(inputs.attention, None, model.opened(inputs))
    logits = read(model, tokens, allowed)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    found = {"input_ids": tokens, "labels": labels, "visible": allowed, "logits": logits, "loss": loss}
    return {f"{layout}.{name}": value for name, value in found.items()}


def text_alone(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    """A text that is too long fills the row, without its end token."""
    conversation, whole = model.processor.format, fixture.config["max_text_len"] + model.grid.count + 3
    sequences = [conversation.understand(0, [("", text)], False, whole, fills=True) for text in texts_of(fixture, "lm")]
    return text_scores("lm", model, text_rows(fixture, model, sequences))


def about_picture(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    """A text that is too long is cut, which our format refuses, and keeps its end token."""
    conversation, whole = model.processor.format, fixture.config["max_text_len"] + model.grid.count + 3
    room = whole - len(conversation.question(1, "")) - 1
    texts = [text[:room] for text in texts_of(fixture, "mmu")]
    inputs = text_rows(fixture, model, [conversation.understand(1, [("", text)], False, whole) for text in texts])
    inputs.tokens[inputs.image_positions] = model.grid.tokens(fixture.inputs["mmu.codes"]).flatten()
    return text_scores("mmu", model, inputs)


def sampling(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    texts, scale, processor = texts_of(fixture, "t2i"), fixture.config["guidance_scale"], model.processor
    inputs = requests(fixture, processor.generate_prompts(texts))
    empty = torch.tensor([processor.unconditional_tokens()] * len(texts))
    without = requests(fixture, pass_inputs(GenerateInputs, empty))
    both = pass_inputs(
        GenerateInputs, torch.cat([inputs.tokens, without.tokens]), torch.cat([inputs.attention, without.attention])
    )
    hidden = torch.full((len(both.tokens), model.grid.count), model.config.mask_token)
    tokens = model._ended(torch.cat([both.tokens, hidden], dim=1))
    embeds = model.language_model.embed_tokens(tokens)
    states = model._picture_states(embeds, both.attention, both.image_positions)
    conditional, unconditional = model.code_logits(states).chunk(2)
    steps, count = model.config.generation_timesteps, model.grid.count
    ratios = masking.SCHEDULES[SCHEDULE](torch.arange(1, steps + 1) / steps)
    return {
        "gen.cond_ids": tokens[: len(texts)],
        "gen.uncond_ids": tokens[len(texts) :],
        "gen.visible": request_mask(model, both),
        "gen.cfg_image_logits": unconditional + (1 + scale) * (conditional - unconditional),
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


def official_draw(fixture: Fixture, model: ShowO) -> dict[str, Tensor]:
    """What our rule makes of the official random numbers: the times are computed back from the shares, and of the places only
    the order is taken, those that the official code masked before the others. How many are masked is ours."""
    drawn, ignore = fixture.outputs, fixture.config["ignore_id"]
    there = drawn["draw.labels"] != ignore
    tokens = torch.where(there, drawn["draw.labels"], drawn["draw.input"])
    times = drawn["draw.mask_ratio"].double().acos() * 2 / torch.pi
    counts = masking.masked_counts(SCHEDULE, times, tokens.shape[1])
    scores = (~there).long().argsort(dim=1, stable=True)  # numbers that put the places into this order
    places = masking.masked_places(counts, scores)
    return {
        "draw.num_masked": counts,
        "draw.input": torch.where(places, model.config.mask_token, tokens),
        "draw.labels": torch.where(places, tokens, ignore),
    }
