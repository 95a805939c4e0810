"""BAGEL: a pack of mixed rows with its gradients, single rows through our own passes, answers, guided sampling, edits.

Rows that no pass of ours makes (pictures of several sizes, drawn and then seen) are built here, from the words of the fixture,
and go through the same language model.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, SiglipVisionConfig

from megaunigame.models.bagel import flow
from megaunigame.models.bagel.autoencoder import patched, unpatched
from megaunigame.models.bagel.configuration import BagelConfig, Flow
from megaunigame.models.bagel.guiding import Guidance
from megaunigame.models.bagel.keys import KEYS, translate
from megaunigame.models.bagel.model import Bagel
from megaunigame.models.bagel.sampling import contexts, sample_latents
from megaunigame.models.bagel.tables import grid_ids, table_rows
from megaunigame.models.causal import masks
from megaunigame.models.causal.decoding import CachedReader
from megaunigame.step.inputs import IGNORE, GenerateInputs, UnderstandInputs
from tests.parity.bagel_rows import TEXT, VAE, VIT, Pack, pack_of
from tests.parity.fixture import EXACT, GRADIENTS, Fixture, Tolerance, taken
from tests.passes import pass_inputs

OF_LARGEST = Tolerance(of_largest=1e-4)
WHOLE = ("_ids", "_mask", "modality", "labels", "sample_lens", "kv_len", "rope", "answer.tokens")
SIZES = "pictures of any shape keep it in the official code; those of our rows are squares"
FROZEN = "a switch of the official training that detaches activations; ours trains groups of weights"
LEFT_OUT = {
    **dict.fromkeys(["preprocess.pixels", "preprocess.sizes_in"], SIZES),
    **dict.fromkeys([f"preprocess.sizes_{of}" for of in ("vae_1024_512_16", "vit_518_224_14", "vit_980_224_14")], SIZES),
    **dict.fromkeys(["preprocess.sizes_tiny_24_12_4_288", "preprocess.sizes_vlm_980_378_14"], SIZES),
    "freeze_und.grad_norm": FROZEN,
    "freeze_und.grad.language_model.model.layers.0.mlp_moe_gen.up_proj.weight": FROZEN,
    "freeze_und.grad.language_model.model.layers.0.self_attn.q_proj_moe_gen.weight": FROZEN,
    "freeze_und.grad.vae2llm.weight": FROZEN,
}


def tolerance(name: str) -> Tolerance:
    return EXACT if name.endswith(WHOLE) else GRADIENTS if "grad" in name else OF_LARGEST


def load(fixture: Fixture) -> Bagel:
    """The model of a fixture, from official keys; it has no tokenizer, only its special tokens."""
    c, special = fixture.config, fixture.config["special_tokens"]
    text = {key: value for key, value in c["llm"].items() if key != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": c["llm"]["rope_theta"]}
    vae = {**taken(c["vae"], scale="scale_factor", shift="shift_factor", base_channels="ch", multipliers="ch_mult")}
    config = BagelConfig(
        Qwen2Config(**text, rope_parameters=rope),
        SiglipVisionConfig(**c["vit"]),
        {**vae, "blocks": c["vae"]["num_res_blocks"], "channels": c["vae"]["z_channels"]},
        **taken(c, "latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side"),
        flow=Flow(c["timestep_shift"], c["inference"]["shift"], c["inference"]["steps"]),
    )
    around = {"begin": special["start_of_image"], "end": special["end_of_image"], "image": -1}
    names = SimpleNamespace(bos=special["bos_token_id"], **around)
    model = Bagel(config, SimpleNamespace(format=names), attention="sdpa", gradient_checkpointing=False)
    frozen = model.build_frozen()
    fixture.load(KEYS, model, frozen)
    model.frozen.keep(frozen)
    return model.eval()


def run(model: Bagel, pack: Pack, given: dict[str, Tensor], case: str, normals: Tensor) -> dict[str, Tensor]:
    """Everything of a pack through the modules of the model, with gradients left to follow."""
    config, patch = model.config, model.config.latent_patch_size
    drawn_pictures = [(name, noised) for kind, name, noised in pack.pictures if kind == VAE]
    seen_pictures = [name for kind, name, _ in pack.pictures if kind == VIT]
    pixels = [given[name] for name, _ in drawn_pictures]
    tallest, widest = max(p.shape[1] for p in pixels), max(p.shape[2] for p in pixels)
    padded = torch.stack([F.pad(p, (0, widest - p.shape[2], 0, tallest - p.shape[1])) for p in pixels])
    latents = model.autoencoder.encode(padded, given[f"{case}.vae_noise"])
    cell = model.autoencoder.cell
    cut = [z[None, :, : p.shape[1] // cell, : p.shape[2] // cell] for z, p in zip(latents, pixels, strict=True)]
    grids = [(z.shape[2] // patch, z.shape[3] // patch) for z in cut]
    clean = torch.cat([patched(z, patch)[0] for z in cut])
    draws = iter(normals)
    times = [flow.shifted(next(draws).sigmoid(), config.flow.train_shift) if noised else 0.0 for _, noised in drawn_pictures]
    t = torch.cat([torch.full((h * w,), float(at)) for (h, w), at in zip(grids, times, strict=True)])
    noise = given[f"{case}.noise"]
    noisy = flow.mix(clean, noise, t)
    at = model.time_embedder(t[None])[0]
    table = torch.cat([table_rows(h, w, config.width, clean.device) for h, w in grids])
    sides = [
        (given[n].shape[1] // config.vision.patch_size, given[n].shape[2] // config.vision.patch_size) for n in seen_pictures
    ]
    hidden_of: dict[str, list[Tensor]] = {"vit_hidden": [], "connector_out": []}
    hooks = [
        model.vit_model.register_forward_hook(lambda m, a, out: hidden_of["vit_hidden"].append(out[0])),
        model.connector.register_forward_hook(lambda m, a, out: hidden_of["connector_out"].append(out[0])),
    ]
    visual = [model.visual_tokens(given[n][None, None])[0, 0] for n in seen_pictures]
    modality, ids = torch.tensor(pack.modality), torch.tensor(pack.ids)
    plain, latent = (modality != VAE).nonzero()[:, 0], (modality == VAE).nonzero()[:, 0]
    embeds = model.language_model.embed_tokens(ids.clamp_min(0))
    if visual:
        embeds = embeds.index_copy(0, (modality == VIT).nonzero()[:, 0], torch.cat(visual))
    hidden_0 = embeds.index_copy(0, latent, model.vae2llm(noisy) + at + table)
    order = torch.cat([plain, latent])
    last: list[Tensor] = []
    hooks.append(model.language_model.layers[-1].register_forward_hook(lambda m, a, out: last.append(out[0])))
    drawn = model.language_model(
        inputs_embeds=hidden_0[None, plain],
        latents=hidden_0[None, latent],
        attention_mask=masks.additive(pack.mask()[None][:, order][:, :, order], hidden_0.dtype),
        position_ids=torch.tensor(pack.places)[None, order],
    ).last_hidden_state
    for hook in hooks:
        hook.remove()
    both = torch.cat([model.language_model.norm(last[0]), drawn], 1)[0]
    hidden = both.new_empty(both.shape).index_copy(0, order, both)
    noised = torch.tensor(pack.drawn)
    of_latents = noised[latent]
    velocity, target = model.llm2vae(hidden[noised]), (noise - clean)[of_latents]
    labels, weights = torch.tensor(pack.labels), torch.tensor(pack.weights)
    logits = model.lm_head(hidden[labels != IGNORE])
    ce = F.cross_entropy(logits, labels[labels != IGNORE], reduction="none")
    mse = (velocity - target).square()
    x0 = noisy[of_latents] - t[of_latents, None] * velocity
    ours: dict[str, Any] = {
        **pack.batch(), "labels": labels, "ce_weights": weights, "mse_mask": noised, "padded_images": padded, "t": t,
        "padded_latent": latents, "latent_tokens_clean": clean, "latent_tokens_noisy": noisy, "timestep_embeds": at,
        "latent_pos": table, "hidden_0": hidden_0, "hidden_last": hidden, "velocity": velocity, "velocity_target": target,
        "mse_per_element": mse, "mse_per_token": mse.mean(-1), "loss_mse": mse.mean(), "x0_tokens": x0, "ce_logits": logits,
        "ce_per_token": ce, "loss_ce": ce.mean(),
        "loss_ce_reweighted": (weights[labels != IGNORE] * ce).sum() / weights.sum(),
        "loss": ce.mean() + mse.mean(),
        "latent_position_ids": torch.cat([grid_ids(h, w, config.max_latent_size, ids.device) for h, w in grids]),
    }  # fmt: skip
    if visual:
        ours["vit_position_ids"] = torch.cat([grid_ids(h, w, config.vit_max_num_patch_per_side, ids.device) for h, w in sides])
        ours["vit_tokens"] = torch.cat([patched(given[n][None], config.vision.patch_size)[0] for n in seen_pictures])
        ours |= {name: torch.cat(values) for name, values in hidden_of.items()} | {"vit_embeds": torch.cat(visual)}
    first = 0
    for number, ((_, noised_one), (h, w)) in enumerate(zip(drawn_pictures, grids, strict=True)):
        if noised_one:
            one = unpatched(x0[None, first : first + h * w], patch, h * patch, w * patch)
            ours[f"x0_pixels_{number}"] = ours["x0_pixels"] = model.decode_latents(one)
            first += h * w
    return ours


def gradient_outputs(model: Bagel, ours: dict[str, Tensor], fixture: Fixture) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    order = [parameters[translate(key)] for key in fixture.config["parameter_order"]]

    def of(loss: Tensor, wanted: list[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, wanted, strict=True)]

    result: dict[str, Tensor] = {}
    for name, loss in (("both", "loss"), ("ce", "loss_ce"), ("mse", "loss_mse")):
        result[f"train.grad_norm_{name}"] = torch.stack([g.norm() for g in of(ours[loss], order)])
    decoded = ours["x0_pixels_4"].square().mean()
    for prefix, loss in (("train.grad.", ours["loss"]), ("train.x0_grad.", decoded)):
        keys = fixture.keys_of(prefix)
        grads = of(loss, [parameters[translate(key)] for key in keys.values()])
        result |= dict(zip(keys, grads, strict=True))
    result["train.x0_grad_hidden"] = of(decoded, [ours["hidden_last"]])[0]
    return result


def own_rows(model: Bagel, given: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Rows that our own passes make: a request, an edit, a conversation."""
    ours: dict[str, Tensor] = {}
    for case, normal in (("t2i_row", 2), ("i2i_row", 3)):
        sample = config["samples"][case.removesuffix("_row")]
        inputs = request(model, next(s["ids"] for s in sample if s["type"] == "text"), given, case == "i2i_row")
        names = [s["image"] for s in sample if s["type"] == "vae_image"]
        latents = model.autoencoder.encode(torch.stack([given[n] for n in names]), given[f"{case}.vae_noise"])
        drawn = latents.shape[2] * latents.shape[3] // model.config.latent_patch_size**2
        noise = unpatched(given[f"{case}.noise"][None, -drawn:], model.config.latent_patch_size, *latents.shape[2:])
        t = flow.shifted(given["timestep_normals"][normal : normal + 1].sigmoid(), model.config.flow.train_shift)
        output = model.match(inputs, latents[-1:], t, noise, latents[:-1] if len(latents) > 1 else None)
        ours[f"{case}.loss_mse"] = output.loss_sum[0] / drawn
        ours[f"{case}.velocity"] = model.llm2vae(output.hidden)[0]
    return ours


def request(model: Bagel, ids: list[int], given: dict[str, Tensor], edit: bool, source: str = "img.sq_src") -> GenerateInputs:
    """One request for a picture."""
    names = model.processor.format
    text = [names.bos, *ids, 141, names.begin, names.end]
    if not edit:
        return pass_inputs(GenerateInputs, torch.tensor([text]))
    image, patch = given[f"{source}_vit"], model.config.vision.patch_size
    seen = image.shape[1] * image.shape[2] // patch**2
    tokens = torch.tensor([[names.begin, names.end, names.begin, *[0] * seen, names.end, *text]])
    where = torch.arange(tokens.shape[1])
    fields = {"images": image[None, None], "image_valid": torch.ones(1, 1, dtype=torch.bool)}
    return pass_inputs(GenerateInputs, tokens, image_positions=((where >= 3) & (where < 3 + seen))[None], **fields)


def conversation(model: Bagel, given: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The row of a conversation through the understand pass."""
    names, image = model.processor.format, given["img.q_vit"]
    seen = image.shape[1] * image.shape[2] // model.config.vision.patch_size**2
    tokens, labels = [names.begin, *[0] * seen, names.end], [IGNORE] * (seen + 2)
    for segment in config["samples"]["vlm"][1:]:
        tokens += [names.bos, *segment["ids"], 141]
        said = [*segment["ids"], 141]
        labels += [IGNORE, *(said if segment["loss"] else [IGNORE] * len(said))]
    where = torch.arange(len(tokens))
    fields = {"images": image[None, None], "image_valid": torch.ones(1, 1, dtype=torch.bool)}
    placed = {"labels": torch.tensor([labels]), "image_positions": ((where > 0) & (where <= seen))[None], **fields}
    inputs = pass_inputs(UnderstandInputs, torch.tensor([tokens]), **placed)
    visual = model.visual_tokens(inputs.images).detach()
    inputs.visual_delta = torch.zeros_like(visual, requires_grad=True)
    output = model(inputs)
    at = {"opened": model.opened(inputs), "positions": model.positions(inputs)}
    logits = model.lm_head(model._read(model.embed(inputs), inputs.attention, **at))[0, :-1]
    per_token = F.cross_entropy(logits, inputs.labels[0, 1:], reduction="none")
    labeled = inputs.labels[0, 1:] != IGNORE
    per_token = per_token[labeled]
    answers = [len(s["ids"]) + 1 for s in config["samples"]["vlm"] if s["loss"]]
    weights = torch.cat([torch.full((n,), n**-0.5) for n in answers])
    loss = output.loss_sum.sum() / inputs.counts.sum()
    (gradient,) = torch.autograd.grad(loss, inputs.visual_delta)
    return {
        "vlm_row.visual_tokens": visual[0, 0],
        "vlm_row.visual_tokens_grad": gradient[0, 0],
        "vlm_row.ce_per_token": per_token,
        "vlm_row.loss_ce": loss,
        "vlm_row.loss_ce_reweighted": (weights * per_token).sum() / weights.sum(),
    }


@torch.no_grad()
def answered(model: Bagel, given: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    names, image = model.processor.format, given["img.q_vit"]
    seen = image.shape[1] * image.shape[2] // model.config.vision.patch_size**2
    tokens = torch.tensor(
        [[names.begin, *[0] * seen, names.end, names.bos, *given["prompt_question"].tolist(), 141, names.bos]]
    )
    where = torch.arange(tokens.shape[1])
    fields = {"images": image[None, None], "image_valid": torch.ones(1, 1, dtype=torch.bool)}
    inputs = pass_inputs(UnderstandInputs, tokens, image_positions=((where > 0) & (where <= seen))[None], **fields)
    opened, positions = model.opened(inputs), model.positions(inputs)
    at_all = {"flash": False, "leave_point": lambda: None}
    reader = CachedReader(model.language_model, inputs.attention, opened=opened, positions=positions, **at_all)
    logits = [model.lm_head(reader.prompt(model.embed(inputs)))[0]]
    said = [torch.tensor(names.bos)]
    while len(logits) < steps:
        said.append(logits[-1].argmax())
        logits.append(model.lm_head(reader.token(model.language_model.embed_tokens(said[-1][None])))[0])
    ours = {"answer.tokens": torch.stack(said), "answer.logits": torch.stack(logits)}
    return ours | {"answer.kv_len": torch.tensor([tokens.shape[1] - 1]), "answer.rope": positions[0, -1:]}


@torch.no_grad()
def sampled(model: Bagel, given: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    c, patch, cell = config["inference"], model.config.latent_patch_size, model.autoencoder.cell
    ours: dict[str, Tensor] = {}
    for case, edit in (("t2i", False), ("edit", True)):
        height, width = given["img.src_vae"].shape[1:] if edit else c["gen_hw"]
        inputs = request(model, given[f"prompt_{case}"].tolist(), given, edit, "img.src")
        sources = model.autoencoder.encode(given["img.src_vae"][None], given["edit.cond_vae_noise"]) if edit else None
        start = unpatched(given["edit.init_noise" if edit else "gen.init_noise"][None], patch, height // cell, width // cell)
        low = c["edit_interval" if edit else "interval"][0]
        of = {"global": 1, "channel": 1, "none": 1, "text_channel": 1} | ({} if edit else {"image_scale_too": c["img_scale"]})
        for name, scale in of.items():
            renorm = "global" if name == "image_scale_too" else name
            text, image = (c["edit_text_scale"], c["edit_img_scale"]) if edit else (c["text_scale"], scale)
            guidance = Guidance(text, image, low, renorm, c["renorm_min"])
            if name == "none":
                guidance = guidance._replace(text=1.0)
            latents = sample_latents(model, inputs, start, guidance, guidance, sources)
            ours[f"{case}.{name}.latents"] = patched(latents, patch)[0]
            ours[f"{case}.{name}.pixels"] = model.decode_latents(latents)
        ours[f"{case}.timesteps"] = torch.tensor(flow.sampling_times(c["steps"], c["shift"]))
        clean = None if sources is None else model.clean_tokens(sources, 1)
        drawn = start.shape[2] * start.shape[3] // patch**2
        for kind, layout in zip(("cond", "cfg_text", "cfg_img"), contexts(model, inputs, clean, drawn), strict=True):
            ours[f"{case}.{kind}_rope"] = layout.positions[0, inputs.tokens.shape[1] - 2].view(1)
            ours[f"{case}.{kind}_kv_len"] = (layout.mask[0, -1].sum() - drawn - 2).view(1)
    return ours


def compute(fixture: Fixture) -> dict[str, Tensor]:
    model, given, config = load(fixture), fixture.inputs, fixture.config
    whole = run(model, pack_of(config, ["edit", "vlm", "t2i", "story"], given), given, "train", given["timestep_normals"])
    ours = {f"train.{name}": value for name, value in whole.items()} | gradient_outputs(model, whole, fixture)
    for case, normals in (("edit_row", slice(0, 2)), ("t2i_row", slice(2, 3)), ("i2i_row", slice(3, 4))):
        row = run(model, pack_of(config, [case.removesuffix("_row")], given), given, case, given["timestep_normals"][normals])
        ours |= {f"{case}.{name}": value for name, value in row.items()}
    drops = {"all": (TEXT, VIT, VAE), "text": (TEXT,), "vae": (VAE,), "vit": (VIT,)}
    for name, drop in drops.items():
        pack = pack_of(config, ["edit", "t2i"] if name == "text" else ["edit"], given, drop)
        ours |= {f"pack_drop_{name}.{key}": value for key, value in pack.batch().items()}
    ours |= own_rows(model, given, config)  # in place of those of `run`
    ours |= conversation(model, given, config) | answered(model, given, config["inference"]["answer_len"])
    ours |= sampled(model, given, config)
    for height, width in ((1, 8), (3, 5), (8, 2)):
        ours[f"pos.extrapolate_{height}x{width}"] = grid_ids(height, width, config["max_latent_size"], torch.device("cpu"))
    padded = whole["padded_images"][:1]
    ours["vae.moments"], ours["vae.encoded"] = model.autoencoder.moments(padded), whole["padded_latent"][:1]
    ours["vae.decoded"] = model.decode_latents(given["vae.latent"])
    return {name: value.detach() for name, value in ours.items()}
