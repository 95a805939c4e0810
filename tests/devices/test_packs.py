"""Passes whose rows are packed, on a device other than the host: nothing waits for it, and GPUs get one kernel for all rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.attention import packs
from megaunigame.models.causal import model as causal
from megaunigame.step.inputs import Taps, put_rows, take_rows
from megaunigame.step.requests import GENERATE, UNDERSTAND
from tests.devices.fake_device import DEVICE, load, move, no_waiting, transfer
from tests.devices.rows import collated
from tests.devices.test_meta import META
from tests.devices.test_passes import drawn_on_the_host, gradients_arrive


@pytest.mark.parametrize("family", ["janus", "openuni", "show_o"])
def test_forward_and_backward(monkeypatch, home, family):
    """Of independent turns and of requests, with taps, with gradient checkpointing, and with rows put in."""
    model = load(family, home, checkpointing=True)
    model.pack_rows(500)
    model.install_taps()
    rows = collated(model, independent=True)
    monkeypatch.setattr(causal, "drawn_tokens", drawn_on_the_host(causal.drawn_tokens))
    with no_waiting(monkeypatch):
        transfer(model, DEVICE, torch.bfloat16)
        inputs = {name: dataclasses.replace(given.to(DEVICE), taps=Taps((0, 1))) for name, given in rows.items()}
        inputs["put"] = put_rows(inputs[UNDERSTAND], slice(2, 3), take_rows(inputs[UNDERSTAND], slice(0, 1)))
        outputs = [model(given) for given in inputs.values()]
        assert [output.loss_sum.shape for output in outputs] == [(4,), (3,), (4,)]
        torch.cat([output.loss_sum + output.attention.keys[0] for output in outputs]).sum().backward()
        gradients_arrive(model, DEVICE)


@pytest.mark.parametrize("family", ["emu3", "show_o"])
def test_forward_and_backward_without_data(home, family):
    model = load(family, home, checkpointing=True)
    model.pack_rows(500)
    rows = collated(model)
    move(model, META, torch.bfloat16)
    move(model.frozen.module, META)
    torch.cat([model(given.to(META)).loss_sum for given in rows.values()]).sum().backward()
    gradients_arrive(model, META)


def head_width(model) -> int:
    config = model.language_model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def test_the_forward_on_cuda(monkeypatch, home, family):
    """Each layer has one call for rows that are causal, grouped heads included."""
    device, calls, kernel = torch.device("cuda", 0), [], packs.varlen_attn

    def noted(query, key, value, begin, begin_again, longest, longest_again, **options):
        calls.append((len(query), len(begin) - 1, longest, options["window_size"]))
        return kernel(query, key, value, begin, begin_again, longest, longest_again, **options)

    monkeypatch.setattr(packs, "varlen_attn", noted)
    monkeypatch.setattr(packs, "capability", lambda device: packs.OLDEST_GPU)
    model = load(family, home)
    model.pack_rows(500)
    rows = collated(model)
    with no_waiting(monkeypatch, device):
        transfer(model, device, torch.bfloat16)
        for name, given in rows.items():
            calls.clear()
            assert model(given.to(device)).loss_sum.device == device
            if not model.only_causal or head_width(model) % 8:
                assert calls == []  # the kernel has no masks, and heads of other widths need padding
                continue
            more = calls[0][2] - max(given.lengths)  # what is drawn
            assert (more > 0) == (name == GENERATE)
            total = sum(length + more for length in given.lengths)
            assert calls == [(total, len(given.lengths), max(given.lengths) + more, (-1, 0))] * len(model.layers())


@pytest.mark.parametrize("family", ["janus"])
def test_a_gpu_that_is_too_old_for_the_kernel_reads_row_by_row(monkeypatch, home, family):
    device, asked = torch.device("cuda", 0), []
    monkeypatch.setattr(packs, "varlen_attn", lambda *_, **options: pytest.fail("no kernel of it exists"))
    monkeypatch.setattr(packs, "capability", lambda of: asked.append(of) or (7, 5))
    model = load(family, home)
    model.pack_rows(500)
    rows = collated(model)
    with no_waiting(monkeypatch, device):
        transfer(model, device, torch.bfloat16)
        for given in rows.values():
            assert model(given.to(device)).loss_sum.device == device
    assert set(asked) == {device}
