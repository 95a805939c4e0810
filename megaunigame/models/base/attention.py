"""Which implementations of attention can run, and which one `model.attention: auto` takes.

The facts are those of all ranks together: a package that one of them lacks is not installed, and a GPU is as new as the oldest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

import torch

from megaunigame.parallel.accelerator import capability

SDPA = "sdpa"
FLASH_2, FLASH_3 = "flash_attention_2", "flash_attention_3"
FLASH = {FLASH_2: "flash-attn", FLASH_3: "flash-attn-3"}
"""Attention that needs a package -> its name for pip. Modules do not tell: flash-attn-4 is imported as flash_attn, too."""
FLASH_GPU = (8, 0)
"""Compute capability of the oldest GPUs that flash attention has kernels for, those of torch included (Ampere)."""
HOPPER = 9
"""Major compute capability of the only GPUs that `flash_attention_3` is for."""
OPEN_MASKS = "in this family parts of a row see what comes after them"


def is_installed(package: str) -> bool:
    """Whether a package of this name for pip is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


class AttentionNeeds(NamedTuple):
    """What the attention of a model must be able to do."""

    mask: str = ""
    """Why its rows need a mask; empty: they are causal."""
    dropout: float = 0.0
    """Part of the attention that is dropped in training."""


@dataclass(frozen=True)
class Machine:
    """What a rank can run attention on."""

    device: str
    """`cpu` or `cuda`."""
    capability: tuple[int, int]
    """Of its GPU; (0, 0) without one."""
    packages: frozenset[str]
    """Those of `FLASH` that are installed."""

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        packages = frozenset(package for package in FLASH.values() if is_installed(package))
        return cls(device.type, capability(device) if device.type == "cuda" else (0, 0), packages)

    @classmethod
    def least(cls, machines: Sequence[Machine]) -> Machine:
        """What all of them can; `machines` has at least one."""
        oldest = min(machine.capability for machine in machines)
        return cls(machines[0].device, oldest, frozenset.intersection(*(machine.packages for machine in machines)))


@dataclass(frozen=True)
class AttentionSetting:
    """Everything that decides."""

    machine: Machine
    needs: AttentionNeeds
    half: bool
    """Whether the model computes in 16 bits."""
    packed: bool
    """Whether rows are read as packs."""


class AttentionChoice(NamedTuple):
    name: str
    """A value of `model.attention`, not `auto`."""
    reason: str


def why_not(attention: str, setting: AttentionSetting) -> str:
    """Why `attention` cannot run in this setting; empty: it can."""
    if attention not in FLASH:
        return ""
    machine, needs = setting.machine, setting.needs
    major, minor = machine.capability
    oldest = ".".join(map(str, FLASH_GPU))
    reasons = {
        f"the package {FLASH[attention]} is not installed": FLASH[attention] not in machine.packages,
        "it needs a GPU": machine.device != "cuda",
        f"it needs a GPU of compute capability {oldest} or newer, and this one has {major}.{minor}": (
            machine.device == "cuda" and machine.capability < FLASH_GPU
        ),
        f"it is for Hopper GPUs (compute capability {HOPPER}.0), and this one has {major}.{minor}": (
            attention == FLASH_3 and machine.capability >= FLASH_GPU and major != HOPPER
        ),
        "it computes in 16 bits (engine.precision=bf16)": not setting.half,
        f"it takes no mask, and {needs.mask}": bool(needs.mask),
        f"it has no dropout, and the attention of this model drops out {needs.dropout:g}": (
            attention == FLASH_3 and needs.dropout > 0
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def choose(setting: AttentionSetting) -> AttentionChoice:
    """What `auto` takes, and why: a flash kernel for packs where it can run, else torch's attention."""
    if setting.machine.device != "cuda":
        return AttentionChoice(SDPA, f"flash attention needs a GPU, and this run is on {setting.machine.device}")
    if not setting.packed:
        return AttentionChoice(
            SDPA, "of rows side by side (model.pack_tokens=0) flash attention waits in every layer to learn where they end"
        )
    reasons = {name: why_not(name, setting) for name in (FLASH_3, FLASH_2)}
    for name, reason in reasons.items():
        if not reason:
            return AttentionChoice(name, "its kernel takes packed rows, and it is installed")
    return AttentionChoice(SDPA, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
