"""Janus-Pro: understanding with one and several images, the image tokenizer, generation, guided decoding, gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import JanusConfig

from megaunigame.models.janus.keys import KEYS, translate
from megaunigame.models.janus.model import Janus
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from tests.parity.fixture import EXACT, FLOATS, GRADIENTS, Fixture, Tolerance, taken
from tests.parity.janus_vq import vq_settings
from tests.passes import pass_inputs

GRADIENT_NORMS = Tolerance(relative=1e-3)


def tolerance(name: str) -> Tolerance:
    if name.endswith("_codes"):
        return EXACT
    if "_gradnorm." in name:
        return GRADIENT_NORMS
    return GRADIENTS if "_grad." in name else FLOATS


def janus_config(config: dict[str, Any]) -> JanusConfig:
    """Neutral sizes of a fixture -> transformers' configuration."""
    vision, language = config["vision"], config["language"]
    assert vision["activation"] == "gelu_erf" and vision.get("qkv_bias", True) and not vision.get("class_token", False)
    ratio = vision["mlp_hidden"] / vision["width"]
    if int(vision["width"] * ratio) < vision["mlp_hidden"]:
        ratio = math.nextafter(ratio, math.inf)
    return JanusConfig(
        vision_config={
            **taken(vision, "image_size", "patch_size", "layer_norm_eps", hidden_size="width"),
            **taken(vision, num_hidden_layers="layers", num_attention_heads="heads"),
            "mlp_ratio": ratio,
            "projection_dim": config["aligner"]["output"],
            "depth": config["aligner"]["layers"],
            "num_image_tokens": config["num_image_tokens"],
        },
        text_config={
            "model_type": "llama",
            **taken(language, "vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", num_hidden_layers="layers"),
            **taken(language, num_attention_heads="heads", num_key_value_heads="kv_heads"),
            "rope_parameters": {"rope_type": "default", "rope_theta": language["rope_theta"]},
            "max_position_embeddings": language["max_positions"],
            "pad_token_id": None,
        },
        vq_config={
            **vq_settings(config["vq"]),
            "projection_dim": config["gen_head"]["hidden"],
            "image_token_embed_dim": language["hidden_size"],
            "num_hidden_layers": config["gen_aligner"]["layers"],
        },
        tie_word_embeddings=False,
    )


def load(fixture: Fixture) -> Janus:
    """The model of a fixture, from official keys; it has no tokenizer, only the ids decoding needs."""
    config = janus_config(fixture.config)
    language = fixture.config["language"]
    ids = SimpleNamespace(pad_id=language["pad_id"], eos_id=language["eos_id"])
    model = Janus(config, ids, attention="sdpa", gradient_checkpointing=False)
    tokenizer = ImageTokenizer(config.vq_config)
    fixture.load(KEYS, model, tokenizer)
    model.frozen.keep(tokenizer)
    return model.eval()


def compute(fixture: Fixture) -> dict[str, Tensor]:
    model = load(fixture)
    given = fixture.inputs
    with torch.no_grad():
        ours = tokenizer_outputs(model, given) | guided_outputs(model, given, fixture.config["cfg_weight"])
        features = model.model.vision_model(given["und_pixel_values"].flatten(0, 1)).last_hidden_state
        ours["und_vision_features"] = features
        ours["gen_img_embeds"] = model.embed_codes(given["gen_codes"])
    ours |= understanding_outputs(model, given, "und", fixture)
    ours |= understanding_outputs(model, given, "multi", fixture)
    return ours | generation_outputs(model, given, fixture)


def tokenizer_outputs(model: Janus, given: dict[str, Tensor]) -> dict[str, Tensor]:
    tokenizer = model.image_tokenizer
    codes = model.encode_target(given["vq_pixel_values"])
    return {
        "vq_prequant": tokenizer.prequant(given["vq_pixel_values"]),
        "vq_codes": codes,
        "vq_quant": tokenizer.embed(codes),
        "decoded_image": tokenizer.decode_codes(given["decode_codes"]),
    }


def guided_outputs(model: Janus, given: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    logits: list[Tensor] = []

    def pick(guided: Tensor) -> Tensor:
        logits.append(guided[0])
        return guided.argmax(-1)

    prompt = given["cfg_prompt_ids"].unsqueeze(0)
    codes = model.sample_codes(pass_inputs(GenerateInputs, prompt), guidance=weight, pick=pick)
    return {"cfg_codes": codes, "cfg_logits": torch.stack(logits)}


def understanding_outputs(model: Janus, given: dict[str, Tensor], case: str, fixture: Fixture) -> dict[str, Tensor]:
    inputs = pass_inputs(
        UnderstandInputs,
        given[f"{case}_input_ids"],
        given[f"{case}_attention_mask"],
        labels=given[f"{case}_labels"],
        images=given[f"{case}_pixel_values"],
        image_valid=given[f"{case}_images_emb_mask"].bool().any(-1),
        image_positions=given[f"{case}_images_seq_mask"].bool(),
    )
    seen: list[Tensor] = []
    hook = model.model.aligner.register_forward_hook(lambda module, args, output: seen.append(output))
    model.zero_grad()
    loss = model(inputs).loss_sum.sum() / inputs.counts.sum()
    hook.remove()
    visual = seen[0]
    visual.retain_grad()
    loss.backward()
    with torch.no_grad():
        embeds = model.embed(inputs)
        logits = model.lm_head(model._read(embeds, inputs.attention))
    shown = inputs.attention.unsqueeze(-1)
    ours = {f"{case}_ce": loss, f"{case}_inputs_embeds": embeds * shown, f"{case}_logits": logits * shown}
    if case == "und":
        ours |= {"und_visual_tokens": visual, "und_grad.visual_tokens": visual.grad}
    return ours | gradients(model, case, fixture)


def generation_outputs(model: Janus, given: dict[str, Tensor], fixture: Fixture) -> dict[str, Tensor]:
    codes = given["gen_codes"]
    model.zero_grad()
    output = model.predict_codes(pass_inputs(GenerateInputs, given["gen_prompt_ids"], given["gen_prompt_mask"]), codes, False)
    loss = output.loss_sum.sum() / codes.numel()
    loss.backward()
    with torch.no_grad():
        logits = model.model.generation_head(output.hidden)
    return {"gen_ce": loss, "gen_logits": logits} | gradients(model, "gen", fixture)


def gradients(model: Janus, case: str, fixture: Fixture) -> dict[str, Tensor]:
    """Gradients and gradient norms the fixture asks for, by official key."""
    parameters = dict(model.named_parameters())
    ours = {}
    for output, key in (fixture.keys_of(f"{case}_grad.") | fixture.keys_of(f"{case}_gradnorm.")).items():
        name = translate(key)
        if name is None:
            continue
        names = [name.replace(".qkv.", f".{letter}_proj.") for letter in "qkv"] if ".qkv." in name else [name]
        gradient = torch.cat([parameters[n].grad for n in names])
        gradient = gradient[None] if key.endswith("pos_embed") else gradient
        ours[output] = gradient.norm() if output.startswith(f"{case}_gradnorm") else gradient
    return ours
