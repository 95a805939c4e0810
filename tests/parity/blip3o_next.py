"""BLIP3o-NEXT: both losses with their gradients, the condition as released and as our pass reads it.

The vision tokenizer is not part of the fixture: codes are given.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config

from megaunigame.models.blip3o_next.configuration import IDS, Blip3oNextConfig, Choice
from megaunigame.models.blip3o_next.keys import AUTOENCODER, KEYS
from megaunigame.models.blip3o_next.model import Blip3oNext
from megaunigame.models.blip3o_next.parts import FrozenPictures
from megaunigame.models.blip3o_next.vq import VisionConfig
from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.diffusion import flow
from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.weights.loading import load_plain
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.step.inputs import IGNORE, GenerateInputs
from tests.parity.fixture import EXACT, Fixture, Tolerance, taken
from tests.passes import pass_inputs

OF_LARGEST = Tolerance(of_largest=1e-4)
WHOLE_NUMBERS = ("_lm_labels", "_lm_attention_mask", "intended_start", "intended_end", "_timesteps")
LOGITS, STATES = 5, 9
"""Every fifth position of logits and every ninth of hidden states is stored."""


def tolerance(name: str) -> Tolerance:
    return EXACT if name.endswith(WHOLE_NUMBERS) else OF_LARGEST


def fixture_config(config: dict[str, Any]) -> Blip3oNextConfig:
    """Neutral sizes of a fixture -> our configuration; those of the vision tokenizer are any that give as many codes."""
    language = config["llm"]
    side = round(config["num_codes"] ** 0.5)
    return Blip3oNextConfig(
        text_config=Qwen3Config(
            **{key: value for key, value in language.items() if key != "rope_theta"},
            rope_parameters={"rope_type": "default", "rope_theta": language["rope_theta"]},
        ),
        ids=taken(config, *IDS),
        image_size=config["tgt_size"][0],
        sana=config["sana"],
        vae=config["vae"],
        vq_config=VisionConfig(
            codebook_size=config["num_image_tokens"],
            embed_dim=4,
            hidden_size=8,
            intermediate_size=8,
            depth=2,
            num_attention_heads=2,
            image_size=side,
            patch_size=1,
        ),
        flow=Flow(train_shift=config["train_scheduler"]["shift"], sample_shift=1.0),
        choice=Choice(),
    )


def load(fixture: Fixture) -> Blip3oNext:
    """The model of a fixture, from official keys; it has no tokenizers."""
    config = fixture_config(fixture.config)
    grid = CodeGrid(
        config.vq_config.side, config.vq_config.side, config.ids["image_start_token_id"], config.vq_config.codebook_size
    )
    processor = SimpleNamespace(format=SimpleNamespace(grid=grid))
    model = Blip3oNext(config, processor, attention="sdpa", gradient_checkpointing=False)
    frozen = FrozenPictures(config)
    trained, autoencoder = KEYS.open(TensorFiles([fixture.weights]), fixture.folder)
    load_plain(model, trained)
    # Without a vision tokenizer in the fixture, the keys of the autoencoder keep its whole prefix.
    assert all(name.startswith("sana_vae.") for name in autoencoder.names()) and AUTOENCODER == KEYS.frozen_root + "sana_vae."
    inside = {name.removeprefix("sana_vae."): autoencoder.read(name) for name in autoencoder.names()}
    frozen.sana_vae.load_state_dict(inside)
    model.frozen.keep(frozen)
    return model.eval()


def compute(fixture: Fixture) -> dict[str, Tensor]:
    model = load(fixture)
    sigmas = flow.train_sigmas(model.config.flow.train_shift)
    ours = {"train_sigmas": sigmas, "train_timesteps": sigmas * flow.LEVELS}
    for case in ("t2i", "i2i"):
        ours |= released_outputs(model, fixture, case)
    return ours | intended_outputs(model, fixture)


def expanded(model: Blip3oNext, fixture: Fixture, case: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention and labels (B, L) with the codes in place of the image: an image of the assistant's has its scale
    before it, and its labels are its tokens; another has no labels."""
    given, config = fixture.inputs, fixture.config
    columns: list[tuple[Tensor, Tensor]] = []
    for row in range(len(given[f"{case}_input_ids"])):
        real = given[f"{case}_attention_mask"][row]
        tokens, labels = given[f"{case}_input_ids"][row][real], given[f"{case}_labels"][row][real]
        (at,) = (tokens == config["image_token_index"]).nonzero().flatten().tolist()
        picture = given[f"{case}_codes"][row] + model.grid.first
        drawn = labels[at - 1] == config["image_start_tag_id"]
        if drawn:
            picture = torch.cat([picture.new_tensor([config["scale_start_token_id"]]), picture])
        said = picture if drawn else torch.full_like(picture, IGNORE)
        columns.append((torch.cat([tokens[:at], picture, tokens[at + 1 :]]), torch.cat([labels[:at], said, labels[at + 1 :]])))
    tokens, labels = (
        torch.nn.utils.rnn.pad_sequence([column[n] for column in columns], batch_first=True, padding_value=fill)
        for n, fill in enumerate((0, IGNORE))
    )
    lengths = torch.tensor([len(column) for column, _ in columns])
    return tokens, torch.arange(tokens.shape[1]) < lengths.unsqueeze(1), labels


def released_outputs(model: Blip3oNext, fixture: Fixture, case: str) -> dict[str, Tensor]:
    """Everything of one training step: the condition is that of the last positions of the padded rows."""
    given, config = fixture.inputs, fixture.config
    tokens, attention, labels = expanded(model, fixture, case)
    model.zero_grad()
    embeds = model.language_model.embed_tokens(tokens) * attention.unsqueeze(-1)
    # What a padding position sees differs: the released condition has some of them.
    model.language_model.set_attn_implementation("sdpa")
    official = model.language_model(inputs_embeds=embeds, attention_mask=attention).last_hidden_state
    hidden = torch.where(attention.unsqueeze(-1), model._read(embeds, attention), official)
    scored = model.lm_head(hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss_ce = scored.losses.sum() / (labels[:, 1:] != IGNORE).sum()
    latents = model.encode_target(given[f"{case}_target_images"])
    u, noise = given[f"{case}_u"], given[f"{case}_noise"]
    sigma = flow.levels(u, model.config.flow.train_shift)
    kept = hidden[:, -config["cond_length"] :] * (1 - given[f"{case}_drop"]).view(-1, 1, 1)
    condition, noisy = model.condition(kept), flow.mix(latents, noise, sigma)
    loss_flow = model.velocity_errors(latents, u, noise, condition).mean()
    (loss_ce + loss_flow).backward()
    velocity = model.velocity(noisy, sigma * flow.LEVELS, condition)
    ours = {
        "lm_attention_mask": attention,
        "lm_labels": labels,
        "last_hidden_state_sample": hidden[:, ::STATES],
        "logits_sample": model.lm_head(hidden[:, ::LOGITS]),
        "selected_after_drop_sample": kept[:, ::STATES],
        "cond_sample": condition[:, ::STATES],
        "latents": latents,
        "sigmas": sigma,
        "timesteps": sigma * flow.LEVELS,
        "noisy_latents": noisy,
        "model_pred": velocity,
        "x0_pred": flow.clean_from(noisy, velocity, sigma),
        "loss_ce": loss_ce,
        "loss_flow": loss_flow,
        "loss_total": loss_ce + loss_flow,
    }
    parameters = dict(model.named_parameters())
    ours |= {f"grad.{key}": parameters[key].grad for key in fixture.keys_of(f"{case}_grad.").values()}
    return {f"{case}_{name}": value.detach() for name, value in ours.items()}


def intended_outputs(model: Blip3oNext, fixture: Fixture) -> dict[str, Tensor]:
    """Our generate pass on the requests alone, padded in front; what lies inside is caught on its way through the modules. The
    row whose condition is dropped is the one that the processor calls unconditional."""
    given, config = fixture.inputs, fixture.config
    tokens, attention, labels = expanded(model, fixture, "t2i")
    start = (labels == config["image_start_tag_id"]).float().argmax(1) + 1
    end = (labels == config["image_end_tag_id"]).float().argmax(1)
    requests = [row[: begin + 1] for row, begin in zip(tokens, start.tolist(), strict=True)]
    width = max(map(len, requests))
    padded = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in requests])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in requests])
    (dropped,) = given["t2i_drop"].nonzero().flatten().tolist()
    model.processor.unconditional_tokens = requests[dropped].tolist  # type: ignore[method-assign]
    seen: dict[str, Tensor] = {}
    hooks = [
        model.model.diffusion_connector.register_forward_hook(lambda m, a, output: seen.update(cond=output)),
        model.dit.register_forward_hook(lambda m, a, output: seen.update(velocity=output[0])),
    ]
    latents, noise = model.encode_target(given["t2i_target_images"]), given["t2i_noise"]
    with torch.no_grad():
        output = model.match(pass_inputs(GenerateInputs, padded, mask), given["t2i_codes"], latents, given["t2i_u"], noise)
    for hook in hooks:
        hook.remove()
    assert torch.equal(output.target, latents)
    scored = model.lm_head(output.hidden[:, :-1].flatten(0, 1), (given["t2i_codes"] + model.grid.first).flatten())
    of_codes = scored.losses.view(len(tokens), -1).sum(1)
    return {
        "intended_start": start,
        "intended_end": end,
        "intended_cond_sample": seen["cond"][:, ::STATES],
        "intended_model_pred": seen["velocity"],
        "intended_loss_flow": ((output.loss_sum - of_codes) / config["num_codes"]).mean().detach(),
    }
