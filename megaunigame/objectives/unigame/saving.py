"""The file of the adversary in a checkpoint: its parameters, its optimizer, and numbers of the game."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from megaunigame.adversary.base import Adversary
from megaunigame.adversary.optimizer import ReplicatedAdamW
from megaunigame.errors import CheckpointError
from megaunigame.objectives.unigame.resumed_settings import changes
from megaunigame.storage.pending import PendingFile

FILE, HEADER = "unigame.safetensors", "unigame"


def pending_adversary(
    adversary: Adversary, optimizer: ReplicatedAdamW, settings: dict[str, Any], state: dict[str, Any]
) -> PendingFile:
    """The file that one rank writes for all; `settings`: `described`; `state`: JSON values that are equal on all ranks."""
    tensors = {f"adversary.{name}": value for name, value in adversary.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.tensors().items()}
    header = json.dumps({"adversary": repr(adversary), "settings": settings, **state})
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return PendingFile(FILE, copies, {HEADER: header})


def load_adversary(
    folder: Path, adversary: Adversary, optimizer: ReplicatedAdamW, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Restore what `pending_adversary` describes; returns its `state`, and sentences about settings that are other ones now.

    Raises CheckpointError for no or another adversary.
    """
    if not (folder / FILE).is_file():
        raise CheckpointError(
            f"{folder} holds no adversary: the launch that saved it had no attacks. Give another `output`, or type "
            "checkpoint.resume=never."
        )
    with safe_open(folder / FILE, "pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = changes(folder, state.pop("settings", {}), settings, adversary)  # older files have no settings
    saved = state.pop("adversary")
    if saved != repr(adversary):
        raise CheckpointError(
            f"{folder} was saved with another adversary:\n{saved}\nThis run has:\n{adversary!r}\n"
            "Give the same settings in objectives.unigame.adversary, or another `output`."
        )
    adversary.load_state_dict(_under("adversary.", tensors))
    optimizer.load_tensors(_under("optimizer.", tensors))
    return state, changed


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
