"""Rows read as a pack have the losses, states and gradients of rows padded side by side, in every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from megaunigame.errors import ModelError
from megaunigame.models.base import rehearsing
from megaunigame.step.inputs import Taps, take_rows
from megaunigame.step.requests import GENERATE
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import LENGTH, TURNS, generate, left_padded, understand
from tests.models.test_attacks import attacked


def understand_rows(picture):
    """Of different lengths, with 0 to 3 pictures, and one row with nothing in it."""
    return [
        UnderstandRow([picture(0)], TURNS[:1]),
        UnderstandRow([picture(1), picture(2), picture(3)], TURNS),
        None,
        UnderstandRow([], TURNS[1:]),
    ]


def generate_rows(picture):
    return [
        GenerateRow("a cube", picture(0)),
        GenerateRow("its small green depth behind two blue balls", picture(1), picture(2)),
        None,
        GenerateRow("the same", picture(3), picture(0), unconditional=True),
    ]


def cases(model, picture):
    """Name -> inputs of a pass."""
    apart = [dataclasses.replace(row, independent=True) if row else None for row in understand_rows(picture)]
    plain = understand(model, *understand_rows(picture))
    return {
        "understand": plain,
        "padded in front": left_padded(understand(model, *understand_rows(picture)), extra=5),
        "independent turns": understand(model, *apart),
        "lengths not known": dataclasses.replace(plain, lengths=[]),
        "generate": generate(model, *generate_rows(picture)),
        "nothing": understand(model, None, None),
    }


def measured(model, inputs):
    """Losses, attention, hidden states and gradients of a pass whose rows weigh differently."""
    torch.manual_seed(0)
    model.zero_grad()
    tapped = dataclasses.replace(inputs, taps=Taps(tuple(range(len(model.layers()))), queries=5))
    output = model(tapped)
    weights = torch.arange(1.0, len(inputs.tokens) + 1)
    shares = torch.where(inputs.counts > 0, output.attention.keys, 0.0)
    ((weights * output.loss_sum).sum() + (weights * shares).sum()).backward()
    values = {"loss": output.loss_sum.detach(), "shares": shares.detach()}
    if inputs.pass_name == GENERATE:
        values["hidden"] = output.hidden.detach()
    return values, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def both(tiny, **options):
    """The model that pads, and the one that packs."""
    padded, packed = tiny.load(), tiny.load(**options)
    packed.pack_rows(300)
    return padded.train(), packed.train()


def test_a_pack_equals_padded_rows(tiny, picture):
    """The one with gradient checkpointing, the others without."""
    padded, packed = both(tiny, gradient_checkpointing=True)
    for model in (padded, packed):
        model.install_taps()
    for name, inputs in cases(padded, picture).items():
        assert inputs.lengths in ([], inputs.attention.sum(1).tolist()), name
        expected, gradients = measured(padded, inputs)
        found, ours = measured(packed, inputs)
        for key, value in expected.items():
            atol = 1e-5 * max(1.0, value.abs().max().item())
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=atol, msg=lambda text, at=(name, key): f"{at} {text}")
        assert ours.keys() == gradients.keys(), name
        whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        off = {key: (ours[key] - gradient).norm() for key, gradient in gradients.items()}
        # Rounding; in float64 the difference is 1e-16. The path through a second transformer is longer.
        limit = 1e-5 if model.has_codes else 3e-5
        assert torch.stack(list(off.values())).norm() <= limit * whole, name
        assert not [key for key in off if off[key] > 1e-4 * gradients[key].norm() + 1e-6 * whole], name


def test_bfloat16_is_near_float32(tiny, picture):
    exact, rounded = tiny.load(), tiny.load(dtype=torch.bfloat16)
    rounded.pack_rows(300)
    apart = understand(exact, UnderstandRow([picture(0)], TURNS, independent=True), None, UnderstandRow([], TURNS[:1]))
    for inputs in (apart, generate(exact, *generate_rows(picture))):
        with torch.no_grad():
            expected = exact(inputs).loss_sum
        losses = rounded(inputs).loss_sum
        losses.sum().backward()
        torch.testing.assert_close(losses.detach(), expected, rtol=0.05, atol=0.0)
        assert all(p.grad.isfinite().all() for p in rounded.parameters() if p.grad is not None)


@pytest.mark.parametrize("tiny", ["janus", "emu3", "show_o", "openuni"], indirect=True)
def test_the_gradient_of_an_attack_goes_through_a_pack(tiny, picture):
    """From questions about attacked pictures, through their visual tokens, to what perturbed them."""
    found = []
    for model in both(tiny):
        _, _, attack, adversary = attacked(model.eval(), picture, anchor="source")
        model(attack.question).loss_sum.sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in adversary.parameters()]))
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() <= 1e-4 * found[0].norm()


@pytest.mark.parametrize("tiny", ["janus"], indirect=True)
def test_a_pass_with_more_tokens_than_the_dry_run_is_made_and_says_so_once(model, picture, caplog):
    model.pack_rows(LENGTH)
    inputs = understand(model, *understand_rows(picture))
    fewer = take_rows(inputs, slice(0, 2))
    assert sum(inputs.lengths) > LENGTH
    with rehearsing(model):
        model(fewer)
        model(take_rows(inputs, slice(0, 1)))  # the largest counts, not the last
    model(fewer)
    assert not caplog.text, "what the dry run had is legal"
    for _ in range(2):
        assert model(inputs).loss_sum.shape == (4,)
    assert caplog.text.count(f"the dry run had {sum(fewer.lengths)} (model.pack_tokens={LENGTH})") == 1


@pytest.mark.parametrize("tiny", ["janus"], indirect=True)
def test_attention_that_computes_maps_is_refused(tiny):
    with pytest.raises(ModelError, match="Type model.attention=sdpa, or model.pack_tokens=0"):
        tiny.load(attention="eager").pack_rows(300)


@pytest.mark.parametrize("tiny", ["janus"], indirect=True)
def test_flash_attention_is_told_where_rows_begin(model, picture, monkeypatch):
    """Its own function is not here: the plain one, row by row, in its place. So are taps."""
    told = []

    def attend(module, query, key, value, mask, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, **options):
        told.append((mask, cu_seq_lens_k.tolist(), max_length_k))
        pieces = zip(*(x.split(cu_seq_lens_q.diff().tolist(), dim=2) for x in (query, key, value)), strict=True)
        return torch.cat([sdpa_attention_forward(module, *piece, None, **options)[0] for piece in pieces], dim=1), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", attend)
    inputs = understand(model, *understand_rows(picture))
    expected = model(inputs).loss_sum
    model.language_model.config._attn_implementation = "flash_attention_2"
    model.pack_rows(300)
    model.install_taps()
    output = model(dataclasses.replace(inputs, taps=Taps((0,))))
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=1e-4)
    ends = [sum(inputs.lengths[:row]) for row in range(5)]
    assert told == [(None, ends, max(inputs.lengths))] * len(model.layers())
