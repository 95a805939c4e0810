"""What tells one frozen tokenizer from another: the codes of one mean nothing to another."""

from __future__ import annotations

import hashlib
import inspect

from torch import nn


def identity(module: nn.Module) -> str:
    """Hex SHA-256 of a tokenizer: its weights as float32, and what its layers do with them (kernels, strides, groups, eps).

    `module` has this project's names, so the Hugging Face and the official layout of the same weights agree, and so do files
    that hold the same numbers in other precisions. Settings are those of torch's own layers with weights: what else a
    configuration says (numbers of blocks, where attention is) is seen in the names.
    """
    content = hashlib.sha256()
    for name, layer in sorted(module.named_modules()):
        kind = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn."))
        if next(layer.parameters(recurse=False), None) is not None and kind is not nn.Module:
            content.update(f"{name} {kind.__name__} {_settings(layer, kind)}\n".encode())
    # Buffers too that are not saved: an order of the codes, say.
    for name, tensor in sorted({**module.state_dict(), **dict(module.named_buffers())}.items()):
        content.update(f"{name} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def _settings(layer: nn.Module, kind: type[nn.Module]) -> str:
    """The arguments a layer of torch was made with, as far as it keeps them under their names."""
    kept = {name: getattr(layer, name, None) for name in inspect.signature(kind).parameters}
    return " ".join(f"{name}={value}" for name, value in kept.items() if isinstance(value, bool | int | float | str | tuple))
