"""OpenUni: generation from text and from a picture with its gradients, understanding, guided sampling."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLConfig

from megaunigame.models.diffusion import flow
from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.diffusion.modules import autoencoder
from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.models.openuni.keys import KEYS, translate
from megaunigame.models.openuni.model import OpenUni
from megaunigame.models.openuni.processor import IMAGENET_MEAN, IMAGENET_STD
from megaunigame.models.text.pictures import Normalize
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from tests.parity.fixture import EXACT, Fixture, Tolerance, taken
from tests.passes import pass_inputs

OF_LARGEST = Tolerance(of_largest=1e-4)
WHOLE_NUMBERS = ("_indices", "_position_ids", "_attention_mask", "gen_timesteps")


def tolerance(name: str) -> Tolerance:
    return EXACT if name.endswith(WHOLE_NUMBERS) else OF_LARGEST


def openuni_config(config: dict[str, Any]) -> OpenUniConfig:
    """Neutral sizes of a fixture -> our configuration."""
    vision, language = config["vision"], config["llm"]
    assert (config["proj_type"], config["select_layer"], config["pixel_shuffle_version"]) == ("enc_proj", -1, "v2")
    internvl = InternVLConfig(
        vision_config={
            **taken(vision, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size"),
            **taken(vision, "patch_size", "norm_type", "hidden_act", "layer_norm_eps"),
            **taken(vision, attention_bias="qkv_bias", use_qk_norm="qk_normalization"),
        },
        text_config={
            "model_type": "qwen2",
            **{key: value for key, value in language.items() if key != "rope_theta"},
            "rope_parameters": {"rope_type": "default", "rope_theta": language["rope_theta"]},
        },
        image_token_id=config["image_token_id"],
        image_seq_length=round((vision["image_size"] // vision["patch_size"] * config["downsample_ratio"]) ** 2),
        downsample_ratio=config["downsample_ratio"],
    )
    return OpenUniConfig(
        internvl=internvl,
        connector=config["connector"],
        transformer=config["sana"],
        autoencoder=config["vae"],
        image_size=config["tgt_size"][0],
        queries=config["num_queries"],
        flow=Flow(
            train_shift=config["train_scheduler"]["shift"],
            sample_shift=config["gen"]["flow_shift"],
            sample_steps=config["gen"]["num_steps"],
        ),
    )


def load(fixture: Fixture) -> OpenUni:
    """The model of a fixture, from official keys; it has no tokenizer, only the normalization of its sources."""
    config = openuni_config(fixture.config)
    processor = SimpleNamespace(source_size=config.source_size, normalize_source=Normalize(IMAGENET_MEAN, IMAGENET_STD))
    model = OpenUni(config, processor, attention="sdpa", gradient_checkpointing=False)
    frozen = autoencoder(config.autoencoder)
    fixture.load(KEYS, model, frozen)
    model.frozen.keep(frozen)
    return model.eval()


def compute(fixture: Fixture) -> dict[str, Tensor]:
    model, given = load(fixture), fixture.inputs
    sigmas = flow.train_sigmas(model.config.flow.train_shift)
    ours = {"train_sigmas": sigmas, "train_timesteps": sigmas * flow.LEVELS}
    ours |= generation_outputs(model, given, "t2i", given["t2i_image_latents"], fixture)
    source = model.as_source(given["i2i_pixel_values_src"]).unsqueeze(1)
    ours |= generation_outputs(model, given, "i2i", model.encode_target(given["i2i_pixel_values"]), fixture, images=source)
    with torch.no_grad():
        ours["i2i_vit_embeds"] = model.visual_tokens(source)[:, 0]
        ours["i2i_x0_pixels"] = model.decode_latents(ours["i2i_x0_pred"])
        ours |= understanding_outputs(model, given, fixture.config["image_token_id"])
        ours |= sampled_outputs(model, given, fixture.config)
    return ours


def source_fields(tokens: Tensor, image_token: int, images: Tensor | None) -> dict[str, Any]:
    """Fields of the inputs that one image per row fills."""
    if images is None:
        return {}
    return {
        "images": images,
        "image_valid": torch.ones(len(tokens), 1, dtype=torch.bool),
        "image_positions": tokens == image_token,
    }


def in_place(read: Tensor, attention: Tensor) -> Tensor:
    """What the language model reads with padding after the tokens (B, S, ...), where `attention` (B, S) has the tokens."""
    tokens_first = (~attention).to(torch.uint8).argsort(dim=1, stable=True)
    return torch.stack([row[order.argsort()] for row, order in zip(read, tokens_first, strict=True)])


def generation_outputs(
    model: OpenUni, given: dict[str, Tensor], case: str, latents: Tensor, fixture: Fixture, images: Tensor | None = None
) -> dict[str, Tensor]:
    """Everything of one generate pass. What lies between embeddings and loss is caught on its way through the modules."""
    tokens, mask = given[f"{case}_input_ids"], given[f"{case}_attention_mask"]
    inputs = pass_inputs(GenerateInputs, tokens, mask, **source_fields(tokens, fixture.config["image_token_id"], images))
    seen: dict[str, Any] = {}
    hooks = [
        model.language_model.register_forward_pre_hook(lambda m, a, kwargs: seen.update(kwargs), with_kwargs=True),
        model.connector.register_forward_hook(lambda m, a, output: seen.update(connector=output.last_hidden_state)),
        model.projector.register_forward_hook(lambda m, a, output: seen.update(condition=output)),
        model.transformer.register_forward_pre_hook(lambda m, a, kw: seen.update(noisy=a[0], **kw), with_kwargs=True),
        model.transformer.register_forward_hook(lambda m, a, output: seen.update(velocity=output[0])),
    ]
    model.zero_grad()
    u, noise = given[f"{case}_u"], given[f"{case}_noise"]
    output = model.match(inputs, latents, u, noise)
    loss = output.loss_sum.sum() / latents.numel()
    loss.backward()
    for hook in hooks:
        hook.remove()
    sigma = flow.levels(u, model.config.flow.train_shift)
    attention = torch.cat([mask.bool(), mask.new_ones(len(mask), model.config.queries).bool()], dim=1)
    ours = {
        "latents": latents,
        "lm_inputs_embeds": in_place(seen["inputs_embeds"], attention),
        "lm_attention_mask": attention,
        "lm_position_ids": in_place(seen["position_ids"], attention),
        "query_hidden": output.hidden,
        "connector_out": seen["connector"],
        "cond": seen["condition"],
        "indices": (u * flow.LEVELS).long(),
        "sigmas": sigma,
        "timesteps": seen["timestep"],
        "noisy_latents": seen["noisy"],
        "model_pred": seen["velocity"],
        "loss": loss,
        "x0_pred": flow.clean_from(seen["noisy"], seen["velocity"], sigma),
    }
    parameters = dict(model.named_parameters())
    ours |= {f"grad.{key}": parameters[translate(key)].grad for key in fixture.keys_of(f"{case}_grad.").values()}
    return {f"{case}_{name}": value.detach() for name, value in ours.items()}


def understanding_outputs(model: OpenUni, given: dict[str, Tensor], image_token: int) -> dict[str, Tensor]:
    tokens, pixels = given["und_input_ids"], given["und_pixel_values"].unsqueeze(1)
    fields = {"labels": given["und_labels"], **source_fields(tokens, image_token, pixels)}
    inputs = pass_inputs(UnderstandInputs, tokens, given["und_attention_mask"], **fields)
    embeds = model.embed(inputs)
    # What a padding position sees has no part in any loss; the official mask and ours differ there.
    model.language_model.set_attn_implementation("sdpa")  # which takes a padding mask
    official = model.language_model(inputs_embeds=embeds, attention_mask=inputs.attention).last_hidden_state
    hidden = torch.where(inputs.attention.unsqueeze(-1), model._read(embeds, inputs.attention), official)
    return {
        "und_vit_embeds": model.visual_tokens(pixels)[:, 0],
        "und_logits": model.lm_head(hidden),
        "und_ce": model(inputs).loss_sum.sum() / inputs.counts.sum(),
    }


def sampled_outputs(model: OpenUni, given: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    scheduler = flow.solver(model.config.flow.sample_shift, model.config.flow.sample_steps)
    inputs = pass_inputs(GenerateInputs, given["gen_input_ids"], given["gen_attention_mask"])
    condition = model.condition(model.query_states(model.embed(inputs), inputs.attention))
    latents = model.sample_latents(given["gen_init_latents"], condition, config["gen"]["cfg_scale"])
    return {
        "gen_sigmas": scheduler.sigmas,
        "gen_timesteps": scheduler.timesteps,
        "gen_latents": latents,
        "gen_pixels": model.decode_latents(latents),
    }
