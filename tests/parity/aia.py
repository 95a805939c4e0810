"""AIA on given attention maps: sets, Huber function, tables, both weights of the released code."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.attention.positions import image_tokens, prompt_text
from megaunigame.attention.targets import EMU3_DEPTH, Target, table
from megaunigame.objectives.aia.player import attention_loss
from megaunigame.objectives.aia.settings import PRESETS
from megaunigame.step.inputs import IGNORE, GenerateInputs, Taps, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND
from tests.parity.fixture import Fixture, Tolerance
from tests.passes import pass_inputs

EXACT_SETS, NO_BOS, RELEASED = Taps(layers=()), Taps(layers=(), exclude_bos=True), Taps(layers=(), compat=True)


def tolerance(name: str) -> Tolerance:
    return Tolerance(absolute=1e-6, relative=1e-5)


def compute(fixture: Fixture) -> dict[str, Tensor]:
    return generation(fixture.config, fixture.inputs) | understanding(fixture.config, fixture.inputs)


def shares_of(maps: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """(L, B, H, T, T) maps and (B, T) sets -> (L, B), the definition."""
    given = torch.einsum("lbhqk,bk->lbq", maps, keys.float()) / maps.shape[2]
    return torch.einsum("lbq,bq->lb", given, queries / queries.sum(1, keepdim=True))


def padded(lengths: list[int], size: int) -> Tensor:
    """(B, size) bool: rows of these lengths, padded in front."""
    return torch.stack([torch.arange(size) >= size - length for length in lengths])


def tables(layers: int, pass_name: str) -> tuple[list[Target], list[Target]]:
    """Targets of the paper, which names one model of 30 and one of 32 layers, and of the released code."""
    paper = "emu3" if layers == EMU3_DEPTH else "janus_pro"
    return table(paper, layers)[pass_name], table("released", layers)[pass_name]


def generation(config: dict[str, Any], given: dict[str, Tensor]) -> dict[str, Tensor]:
    sizes, lam = config["gen"], config["lambda"]["gen"]
    assert lam == PRESETS["code"][GENERATE]
    text, codes = sizes["text_len"], sizes["image_tokens"]
    prompts = padded(sizes["prompt_len"], text)
    inputs = pass_inputs(GenerateInputs, prompts.long(), prompts)
    use = torch.tensor(sizes["use"]).bool()
    drawn = torch.arange(text + codes).expand(len(use), -1)
    read, last = (drawn >= text) & (drawn < text + codes - 1), drawn >= text

    def keys(taps: Taps) -> Tensor:
        return F.pad(prompt_text(inputs, taps), (0, codes))

    logits, targets = given["gen_logits"], given["gen_codes"]
    ntp = F.cross_entropy(logits[:, text - 1 : text - 1 + codes].flatten(0, 1), targets.flatten())
    paper, released = tables(config["layers"], GENERATE)
    # The released keys begin one padding position early: no attention is there, but a gradient of the given map is.
    early = torch.roll(prompts, -1, 1) & ~prompts
    early[:, -1] = False
    released_keys = keys(RELEASED) | F.pad(early, (0, codes))
    ours = losses("gen", given["gen_attn"], read, released_keys, use, released, config["layer_counts"], ntp, lam)
    for name, queries, taps in (("", read, EXACT_SETS), ("_nobos", read, NO_BOS), ("_allrows", last, EXACT_SETS)):
        ours |= exact_losses(f"gen_exact{name}", given["gen_attn"], queries, keys(taps), use, paper)
    return ours


def understanding(config: dict[str, Any], given: dict[str, Tensor]) -> dict[str, Tensor]:
    sizes, lam = config["und"], config["lambda"]["und"]
    assert lam == PRESETS["code"][UNDERSTAND]
    length = sizes["seq_len"]
    attention = padded([length - padding for padding in sizes["pads"]], length)
    first = torch.tensor(sizes["boi"]).unsqueeze(1) + 1
    places = torch.arange(length)
    images, labels = (places >= first) & (places < first + sizes["image_tokens"]), given["und_labels"]
    inputs = pass_inputs(UnderstandInputs, attention.long(), attention, image_positions=images, labels=labels)
    use = torch.tensor(sizes["use"]).bool()
    ntp = F.cross_entropy(given["und_logits"][:, :-1].flatten(0, 1), given["und_labels"][:, 1:].flatten(), ignore_index=IGNORE)
    paper, released = tables(config["layers"], UNDERSTAND)
    maps, queries = given["und_attn"], inputs.labels != IGNORE
    ours = losses("und", maps, queries, image_tokens(inputs, RELEASED), use, released, config["layer_counts"], ntp, lam)
    return ours | exact_losses("und_exact", maps, queries, image_tokens(inputs, EXACT_SETS), use, paper)


def losses(
    task: str,
    maps: Tensor,
    queries: Tensor,
    keys: Tensor,
    use: Tensor,
    targets: list[Target],
    depths: list[int],
    ntp: Tensor,
    weight: float,
) -> dict[str, Tensor]:
    """What the released code computes: unused rows count in the divisor."""
    maps = maps.clone().requires_grad_()
    shares = shares_of(maps, queries, keys)
    ours = {
        f"{task}_intensity": shares * use if task == "und" else shares,
        f"{task}_delta_target": torch.tensor([[target.delta, target.target] for target in targets]),
        f"{task}_ntp": ntp,
    }
    for depth in depths:
        attention = (attention_loss(shares[:depth], targets[:depth]) * use).sum() / len(use)
        ours |= {f"{task}_loss_attn_L{depth}": attention, f"{task}_total_L{depth}": ntp + weight * attention}
    (ours[f"{task}_grad_attn_L{len(maps)}"],) = torch.autograd.grad(ours[f"{task}_loss_attn_L{len(maps)}"], maps)
    return ours


def exact_losses(
    name: str, maps: Tensor, queries: Tensor, keys: Tensor, use: Tensor, targets: list[Target]
) -> dict[str, Tensor]:
    """Our sets; `counted` is our divisor."""
    maps = maps.clone().requires_grad_()
    shares, depth = shares_of(maps, queries, keys), len(maps)
    attention = (attention_loss(shares, targets) * use).sum()
    (gradient,) = torch.autograd.grad(attention / len(use), maps)
    return {
        f"{name}_intensity": shares * use,
        f"{name}_loss_attn_L{depth}": attention / len(use),
        f"{name}_loss_attn_counted_L{depth}": attention / use.sum(),
        f"{name}_gradnorm_L{depth}": gradient.norm(),
    }
