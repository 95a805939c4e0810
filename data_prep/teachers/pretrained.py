"""Checkpoints of the transformers library: loaded completely or not at all, and identified by a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor

from megaunigame.errors import ModelError

from .base import Machine

LICENSES = {
    "depth-anything-v2-small": "Apache-2.0",
    "depth-anything-v2-base": "CC-BY-NC-4.0 (no commercial use)",
    "depth-anything-v2-large": "CC-BY-NC-4.0 (no commercial use)",
    "sam-vit": "Apache-2.0",
    "sam2": "Apache-2.0",
}
"""Of the weights, as their authors published them; matched by a part of the model's name."""

WANTED = (
    "Give the folder of a transformers checkpoint (config.json, preprocessor_config.json, model.safetensors) or, with a "
    "network, a hub id."
)


class Checkpoint:
    """A frozen model with its image processor, in the machine's dtype and on its device."""

    def __init__(self, auto_class: Any, model: str, revision: str | None, machine: Machine):
        """`model` is a folder or a hub id, `revision` a branch, tag or commit of the hub.

        Raises ModelError when the model is absent, of another kind, or lacks weights.
        """
        if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
            raise ModelError(f"{model}: no such folder. {WANTED}")
        try:
            self.processor = AutoImageProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
            network, report = auto_class.from_pretrained(
                model, revision=revision, dtype=machine.dtype, output_loading_info=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:  # unreachable or absent, of another kind, a broken configuration
            raise ModelError(
                f"{model}: cannot be loaded as a model for {_purpose(auto_class)}: {str(error).strip().splitlines()[0]}. "
                f"{WANTED}"
            ) from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ModelError(
                f"{model}: the checkpoint lacks {len(missing)} weights, for example {missing[0]}. Download it again."
            )
        commit = getattr(network.config, "_commit_hash", None)
        self.identity = {
            "model": Path(model).name if Path(model).is_dir() else model,
            "revision": commit or revision,
            "weights_sha256": digest(network),
            "weights": sum(parameter.numel() for parameter in network.parameters()),
            "dtype": str(machine.dtype).removeprefix("torch."),
            "license": license_of(model),
        }
        self.network = network.to(machine.device).eval().requires_grad_(False)


def digest(network: nn.Module) -> str:
    """Hex SHA-256 of all weights and buffers: the same model under another path is the same teacher."""
    content = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return content.hexdigest()


def license_of(model: str) -> str:
    """A note on the weights' license, from the model's name."""
    name = Path(model).name.lower().replace("_", "-")
    return next((license for part, license in LICENSES.items() if part in name), "not known here: see the model's card")


def _purpose(auto_class: Any) -> str:
    return str(auto_class.__name__).removeprefix("AutoModelFor")
