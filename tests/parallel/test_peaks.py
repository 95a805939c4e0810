"""Which peak belongs to a device."""

from __future__ import annotations

import pytest
import torch

from megaunigame.parallel.peaks import PEAKS, peak_flops


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_that_of_the_longest_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), "bf16") == peak
    assert peak_flops(torch.device("cuda", 0), "fp32") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None


def test_float32_without_tf32_is_far_below_bf16():
    assert all(7 < peak.bf16 / peak.fp32 < 30 for peak in PEAKS.values()), PEAKS
