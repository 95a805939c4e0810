"""Harmon: understanding, drawing from text and from a picture with their gradients, on two grids; guided sampling."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config

from megaunigame.models.harmon import diffusion, sampling
from megaunigame.models.harmon.configuration import Drawing, HarmonConfig
from megaunigame.models.harmon.keys import KEYS
from megaunigame.models.harmon.mar import taken
from megaunigame.models.harmon.masking import Draw, split
from megaunigame.models.harmon.model import Harmon, in_grid
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from tests.parity.fixture import EXACT, Fixture, Tolerance
from tests.passes import pass_inputs

OF_LARGEST = Tolerance(of_largest=1e-4)
LEFT_OUT = {"dsample_z": "given to the denoising: nothing computes it"}
WHOLE_NUMBERS = ("_position_ids", "_attention_mask", "_mask", "_masks", "_timestep_map")


def tolerance(name: str) -> Tolerance:
    return EXACT if name.endswith(WHOLE_NUMBERS) else OF_LARGEST


def harmon_config(config: dict[str, Any]) -> HarmonConfig:
    """Neutral sizes of a fixture -> our configuration. It has no autoencoder: that of the sizes is never built."""
    mar, head, text = config["mar"], config["diffloss"], dict(config["llm"])
    assert (mar["patch_size"], mar["qkv_bias"], mar["layer_norm_eps"], mar["mlp_ratio"]) == (1, True, 1e-6, 4.0)
    assert (head["train_timesteps"], head["noise_schedule"], head["learn_sigma"]) == (diffusion.LEVELS, "cosine", True)
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    sampled = config["sample"]
    side = mar["grid"][0] * mar["vae_stride"]
    return HarmonConfig(
        llm=Qwen2Config(**text, rope_parameters=rope),
        mar={
            **{"image_size": side, "width": mar["embed_dim"], "heads": mar["num_heads"], "mlp_ratio": 4},
            **{"encoder_layers": mar["encoder_depth"], "decoder_layers": mar["decoder_depth"]},
            **{"buffers": mar["buffer_size"], "dropout": mar["attn_dropout"]},
            **{"head_width": head["width"], "head_layers": head["depth"]},
        },
        autoencoder={
            **{"base_channels": 32, "multipliers": [1] * 5, "blocks": 1, "latent_channels": mar["latent_channels"]},
            **{"resolution": 256, "attention_resolutions": [16], "scaling_factor": config["vae_scale"]},
        },
        image_size=side,
        source_size=side,
        drawing=Drawing(
            least_masked=mar["mask_ratio_min"],
            copies=mar["diffusion_batch_mul"],
            rounds=sampled["num_iter"],
            noise_steps=head["sampling_steps"],
            guidance_schedule=sampled["cfg_schedule"],
            understanding_gradient=config["grad_scale"],
        ),
    )


def load(fixture: Fixture) -> Harmon:
    """The model of a fixture, from official keys. It reads latents in place of pictures: the fixture has no autoencoder."""
    model = Harmon(harmon_config(fixture.config), SimpleNamespace(), attention="sdpa", gradient_checkpointing=False)
    fixture.load(KEYS, model, None)
    model._latents = lambda pixels: pixels
    return model.eval()


def compute(fixture: Fixture) -> dict[str, Tensor]:
    model, given, config = load(fixture), fixture.inputs, fixture.config
    ours = {"train_betas": diffusion.betas(), "train_alphas_cumprod": diffusion.kept_shares()}
    levels = torch.tensor(diffusion.chosen_levels(config["diffloss"]["sampling_steps"]))
    ours |= {"sampling_timestep_map": levels, "sampling_alphas_cumprod": diffusion.kept_shares()[levels]}
    image = config["image_token_index"]
    for prefix in ("", "big_"):
        ours |= understanding_outputs(model, given, prefix, image, fixture)
        ours |= drawing_outputs(model, given, f"{prefix}gen", f"{prefix}gen", given[f"{prefix}latents"], fixture)
    ours |= drawing_outputs(model, given, "i2i", "gen", given["latents"], fixture, given["src_latents"])
    with torch.no_grad():
        ours |= denoised_outputs(model, given, fixture.outputs["dsample_z"], config["sample"]["cfg"])
        ours |= sampled_outputs(model, given, config["sample"])
    return ours


def as_latents(tokens: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w)."""
    return in_grid(tokens.flatten(1, 2), (tokens.shape[1], tokens.shape[2]))


def with_source(tokens: Tensor, image: int, latents: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Ids with legal ones at the places of one picture per row, and the fields of the inputs that it fills."""
    places = tokens == image
    fields = {"images": as_latents(latents).unsqueeze(1), "image_valid": torch.ones(len(tokens), 1, dtype=torch.bool)}
    return tokens.masked_fill(places, 0), {**fields, "image_positions": places}


def gradients(model: Harmon, fixture: Fixture, prefix: str) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[key].grad for name, key in fixture.keys_of(f"{prefix}_grad.").items()}


class Seen:
    """What goes through the modules of a model."""

    def __init__(self, model: Harmon):
        self.encoded: list[Tensor] = []
        self.completed: list[Tensor] = []
        self.places: list[Tensor] = []
        self.read: list[Tensor] = []
        self.given: dict[str, Any] = {}
        self.returned = torch.empty(0)
        self.hooks = [
            model.mar.register_forward_hook(self._mar, with_kwargs=True),
            model.proj_in.register_forward_hook(lambda m, a, output: self.read.append(output)),
            model.proj_out.register_forward_hook(lambda m, a, output: setattr(self, "returned", output)),
            model.language_model.register_forward_pre_hook(lambda m, a, kwargs: self.given.update(kwargs), with_kwargs=True),
        ]

    def _mar(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if kwargs.get("decode"):
            self.completed.append(output)
        else:
            self.encoded.append(output)
            self.places.append(args[1])

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def understanding_outputs(
    model: Harmon, given: dict[str, Tensor], prefix: str, image: int, fixture: Fixture
) -> dict[str, Tensor]:
    tokens, fields = with_source(given[f"{prefix}und_input_ids"], image, given[f"{prefix}latents"])
    labels = given[f"{prefix}und_labels"]
    inputs = pass_inputs(UnderstandInputs, tokens, given[f"{prefix}und_attention_mask"], labels=labels, **fields)
    seen, buffers = Seen(model), model.config.buffers
    model.zero_grad()
    ce = model(inputs).loss_sum.sum() / inputs.counts.sum()
    ce.backward()
    seen.close()
    ours = gradients(model, fixture, f"{prefix}und")
    with torch.no_grad():
        embeds = model.embed(inputs)
        # What a padding position sees has no part in any loss; the official mask and ours differ there.
        model.language_model.set_attn_implementation("sdpa")  # which takes a padding mask
        official = model.language_model(inputs_embeds=embeds, attention_mask=inputs.attention).last_hidden_state
        hidden = torch.where(inputs.attention.unsqueeze(-1), model._read(embeds, inputs.attention), official)
        logits = model.lm_head(hidden)
    of_pass = {
        "x_enc": seen.encoded[0],
        "z_enc": seen.read[0].roll(-buffers, 1),
        "inputs_embeds": embeds,
        "last_hidden_state": hidden,
        "logits": logits,
        "logits_labelled": logits[:, :-1][labels[:, 1:] >= 0],
        "ce": ce,
    }
    return {name: value.detach() for name, value in ours.items()} | {
        f"{prefix}und_{name}": value.detach() for name, value in of_pass.items()
    }


def drawing_outputs(
    model: Harmon,
    given: dict[str, Tensor],
    case: str,
    random: str,
    tokens_of_target: Tensor,
    fixture: Fixture,
    source: Tensor | None = None,
) -> dict[str, Tensor]:
    """Everything of one generate pass; `random`: the prefix of its noise. The gradient of a source is not scaled here."""
    tokens, mask, fields = given[f"{case}_input_ids"], given[f"{case}_attention_mask"], {}
    if source is not None:
        tokens, fields = with_source(tokens, fixture.config["image_token_index"], source)
    inputs = pass_inputs(GenerateInputs, tokens, mask, **fields)
    latents, orders = as_latents(tokens_of_target), given[f"{random}_orders"]
    rows, places = orders.shape
    masked = -int(-places * given[f"{random}_mask_rate"].item() // 1)
    levels = given[f"{random}_timesteps"].view(-1, rows, places)
    noise = given[f"{random}_noise"].view(*levels.shape, -1)
    hidden, visible = split(orders, masked)
    chosen = torch.stack([row.gather(1, hidden) for row in levels])
    drawn = Draw(hidden, visible, chosen, torch.stack([taken(row, hidden) for row in noise]))
    seen, buffers = Seen(model), model.config.buffers
    states: list[Tensor] = []
    hook = model.language_model.register_forward_hook(lambda m, a, output: states.append(output.last_hidden_state))
    model.zero_grad()
    loss = model.match(inputs, latents, drawn).loss_sum.sum() / (rows * places)
    loss.backward()
    hook.remove()
    seen.close()
    z, tail = seen.completed[0], buffers + places - masked
    clean = tokens_of_target.flatten(1, 2).expand(len(levels), -1, -1, -1)
    with torch.no_grad():
        noisy = diffusion.noisy(clean, noise, levels)
        predicted, v = model.mar.diffloss(noisy, levels, z.expand(len(levels), -1, -1, -1))
        losses = diffusion.token_losses(clean, noisy, levels, noise, predicted, v)
        step = diffusion.step_of(diffusion.tables(diffusion.LEVELS, noisy.device), levels, noisy, predicted, v)
    by_row = {
        "diff_xt": noisy,
        "diff_model_output": torch.cat([predicted, v], dim=-1),
        "p_mean": step.mean,
        "p_log_variance": step.log_variance,
        "x0_pred": step.clean,
    }
    of_rows = {"diff_mse": losses.squared, "diff_vb": losses.bits, "diff_loss": losses.squared + losses.bits}
    ours = {
        "mask": torch.zeros(rows, places).scatter(1, hidden, 1.0),
        "x_enc": seen.encoded[0],
        "z_enc": seen.read[0].roll(-buffers, 1),
        "lm_attention_mask": torch.cat([mask, mask.new_ones(rows, tail)], dim=1),
        "lm_position_ids": seen.given["position_ids"],
        "lm_hidden_tail": states[0][:, -tail:],
        "proj_out": seen.returned,
        "x_enc_res": seen.encoded[0] + seen.returned,
        "z": z,
        "loss": loss,
        **{name: value.flatten(0, 2) for name, value in by_row.items()},
        **{name: value.flatten() for name, value in of_rows.items()},
    }
    ours = {f"{case}_{name}": value.detach() for name, value in ours.items()}
    return ours | gradients(model, fixture, case)


def denoised_outputs(model: Harmon, given: dict[str, Tensor], z: Tensor, guidance: float) -> dict[str, Tensor]:
    """The conditional half is ours. The official code also carries an unconditional half, which has the guided noise, a
    variance of its own, and no part in any picture."""
    start, noises = given["dsample_init_noise"], given["dsample_step_noise"]
    rows, steps, condition = len(start), len(noises), z.unsqueeze(0)
    plain = sampling.Guided(model, condition[:, :rows], 1, 1.0)
    ours = {"dsample_tokens_nocfg": denoised(plain, start, noises[:, :rows], steps)}
    halves = torch.cat([condition[:, :rows], condition[:, rows:]])
    guided = sampling.Guided(model, halves, 2, guidance)
    path: list[Tensor] = []

    def recorded(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        path.append(x)
        return guided(x, levels)

    first = denoised(recorded, start, noises[:, :rows], steps)

    def of_second(_: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        x = path.pop(0)
        return guided(x, levels)[0], model.mar.diffloss(x, levels, condition[:, rows:])[1]

    second = denoised(of_second, start, noises[:, rows:], steps)
    return ours | {"dsample_tokens_cfg": torch.cat([first, second])}


def denoised(predict: diffusion.Predict, start: Tensor, noises: Tensor, steps: int) -> Tensor:
    """(k, C), with noises (steps, k, C)."""
    return diffusion.denoise(predict, start.unsqueeze(0), (noise.unsqueeze(0) for noise in noises), steps, 1.0)[0]


class GivenNoise:
    """Of one picture, round by round."""

    def __init__(self, start: Tensor, steps: Tensor):
        self.starts, self.all_steps, self.round = start, steps, -1

    def start(self, tokens: int) -> Tensor:
        self.round += 1
        return self.starts[self.round, :tokens].unsqueeze(0)

    def steps(self, tokens: int) -> Iterator[Tensor]:
        return iter(self.all_steps[self.round, :, :tokens].unsqueeze(1))


def sampled_outputs(model: Harmon, given: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    embeds = model.language_model.embed_tokens(given["sample_input_ids"])
    reader = sampling.PictureReader(model.language_model, embeds, given["sample_attention_mask"].bool(), flash=False)
    noise, orders = GivenNoise(given["sample_init_noise"], given["sample_step_noise"]), given["sample_orders"][:1]
    seen = Seen(model)
    tokens = sampling.draw(model, reader, orders, noise, config["cfg"], config["temperature"])
    seen.close()
    masks = [torch.ones(1, orders.shape[1]).scatter(1, places, 0.0).expand(2, -1) for places in seen.places]
    return {
        "sample_latents": tokens.unflatten(1, model.picture_grid),
        "sample_masks": torch.stack(masks),
        "sample_z": torch.stack(seen.completed),
    }
