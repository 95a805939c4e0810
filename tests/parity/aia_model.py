"""AIA through a whole Janus, by taps: shares, losses and gradient norms of both tasks, with the sets of the released code."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from megaunigame.attention.targets import table
from megaunigame.models.janus.keys import translate
from megaunigame.models.janus.model import Janus
from megaunigame.objectives.aia.player import attention_loss
from megaunigame.objectives.aia.settings import PRESETS
from megaunigame.step.inputs import GenerateInputs, GenerateOutput, PassInputs, PassOutput, Taps, UnderstandInputs
from tests.parity.fixture import EXACT, Fixture, Tolerance
from tests.parity.janus_pro import load
from tests.passes import pass_inputs


def tolerance(name: str) -> Tolerance:
    if name == "gen_codes":
        return EXACT
    return Tolerance(absolute=1e-7, relative=1e-3) if "_gradnorm_" in name else Tolerance(absolute=1e-5, relative=1e-5)


def compute(fixture: Fixture) -> dict[str, Tensor]:
    model = load(fixture)
    model.install_taps()
    # This fixture's model was built with a padding index: the embedding of pads, read by dropped prompts, has no gradient.
    model.language_model.embed_tokens.padding_idx = fixture.config["language"]["pad_id"]
    given, layers = fixture.inputs, fixture.config["language"]["layers"]
    taps = Taps(tuple(range(layers)), compat=True)
    tokens, mask = given["gen_input_ids"], given["gen_attention_mask"]
    generate = pass_inputs(GenerateInputs, tokens, mask, targets=given["gen_image"])
    understand = pass_inputs(
        UnderstandInputs,
        given["und_input_ids"],
        given["und_attention_mask"],
        labels=given["und_labels"],
        images=given["und_image"].unsqueeze(1),
        image_valid=torch.ones(len(given["und_labels"]), 1, dtype=torch.bool),
        image_positions=given["und_images_seq_mask"].bool(),
    )
    ours: dict[str, Tensor] = {}
    for task, inputs in (("gen", generate), ("und", understand)):
        inputs = dataclasses.replace(inputs, taps=taps)
        output: PassOutput = model(inputs)
        ours |= results(fixture, model, task, inputs, output)
    return ours


def results(fixture: Fixture, model: Janus, task: str, inputs: PassInputs, output: PassOutput) -> dict[str, Tensor]:
    assert output.attention is not None
    use = torch.tensor(fixture.config[task]["use"])
    targets = table("released", len(output.attention.keys))[inputs.pass_name]
    attention = (attention_loss(output.attention.keys, targets) * use).sum() / len(use)
    positions = output.target.numel() if isinstance(output, GenerateOutput) else int(inputs.counts.sum())
    ntp = output.loss_sum.sum() / positions
    total = ntp + PRESETS["code"][inputs.pass_name] * attention
    ours = {
        f"{task}_intensity": output.attention.keys * use if task == "und" else output.attention.keys,
        f"{task}_loss_attn": attention,
        f"{task}_ntp": ntp,
        f"{task}_total": total,
    }
    if isinstance(output, GenerateOutput):
        ours["gen_codes"] = output.target
    for what, loss in (("attn", attention), ("total", total)):
        model.zero_grad()
        loss.backward(retain_graph=True)
        parameters = dict(model.named_parameters())
        for name, key in fixture.keys_of(f"{task}_gradnorm_{what}.").items():
            gradient = parameters[str(translate(key))].grad
            ours[name] = torch.zeros(()) if gradient is None else gradient.norm()
    return ours
