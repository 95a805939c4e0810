"""Peak operations per second of devices, from their data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tables of peaks are read by commands that must answer before torch is imported
    import torch


@dataclass(frozen=True)
class Peak:
    """Dense operations per second of one device."""

    bf16: float
    """On its matrix units, without sparsity."""
    fp32: float
    """In float32 throughout, without TF32."""


PEAKS = {
    "NVIDIA H200 NVL": Peak(835e12, 60e12),
    "NVIDIA H200": Peak(989e12, 67e12),
    "NVIDIA H100 PCIe": Peak(756e12, 51e12),
    "NVIDIA H100 NVL": Peak(835e12, 60e12),
    "NVIDIA H100": Peak(989e12, 67e12),
    "NVIDIA GH200": Peak(989e12, 67e12),
    "NVIDIA B200": Peak(2250e12, 80e12),
    "NVIDIA A100": Peak(312e12, 19.5e12),
    "AMD Instinct MI300X": Peak(1307e12, 163.4e12),
}
"""Beginning of torch.cuda.get_device_name() -> its peaks."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of `device` in bf16; None for a CPU, for a device not in the table, and in another precision."""
    if device.type != "cuda" or precision != "bf16":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    known = [start for start in PEAKS if name.startswith(start)]
    return PEAKS[max(known, key=len)].bf16 if known else None
