"""Exports a training checkpoint as a Hugging Face folder, or as a PEFT adapter.

Runs in one process without a GPU, for any number of training ranks: the engine's shards are merged on the host, and weights
that were not trained are copied from the model folder one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from megaunigame.checkpoint.manager import read_manifest
from megaunigame.config import ModelConfig
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel

LORA = re.compile(r".+\.lora_[AB]\.default\.weight")
SHARD_BYTES = 5 * 10**9


def trained_weights(step_folder: Path) -> dict[str, Tensor]:
    """Whole fp32 tensors of every trained parameter of a step folder. Raises CheckpointError when it is damaged."""
    read_manifest(step_folder)
    return get_fp32_state_dict_from_zero_checkpoint(
        str(step_folder.parent), tag=step_folder.name, exclude_frozen_parameters=True
    )


def check_out(out: Path) -> None:
    """Raise ConfigError for a folder that holds weights: readers would take some of them for those of the new model."""
    if found := sorted(out.glob("*.safetensors*")):
        raise ConfigError(f"{out} holds weights already ({found[0].name}). Give another --out, or delete that folder.")


def export_model(family: type[UnifiedModel], config: ModelConfig, step_folder: Path, out: Path, dtype: torch.dtype) -> int:
    """Write a Hugging Face folder with the trained weights, adapters merged; returns its weights' bytes."""
    family.write_settings(config.path, out)
    trained = trained_weights(step_folder)
    return write_shards(_merged(family, config, trained), out, dtype)


def export_adapter(config: ModelConfig, step_folder: Path, out: Path) -> int:
    """Write the adapters alone, as PEFT's `PeftModel.from_pretrained(base, out)` loads them; returns their bytes."""
    out.mkdir(parents=True, exist_ok=True)
    adapters = {name: value for name, value in trained_weights(step_folder).items() if LORA.fullmatch(name)}
    tensors = {f"base_model.model.{n.replace('.default.', '.')}": v.contiguous() for n, v in adapters.items()}
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    modules = sorted({name.split(".lora_")[0] for name in adapters})
    lora = config.lora
    # Full module names: the vision tower has projections of the same last name, which have no adapters.
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=modules,
        base_model_name_or_path=config.path,
        inference_mode=True,
    )
    settings.save_pretrained(str(out))
    return (out / "adapter_model.safetensors").stat().st_size


def _merged(family: type[UnifiedModel], config: ModelConfig, trained: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the exported folder, one at a time: W + (alpha / rank) B A if adapters were trained."""
    for weights in (family.weights(config.path), family.frozen_weights(config.path)):
        for name in sorted(weights.names()):
            module = name.removesuffix(".weight")
            low = trained.get(f"{module}.lora_A.default.weight")
            if low is not None:
                high = trained[f"{module}.lora_B.default.weight"]
                yield name, weights.read(name).float() + (config.lora.alpha / config.lora.rank) * (high @ low)
            else:
                yield name, trained[name] if name in trained else weights.read(name)


def write_shards(weights: Iterator[tuple[str, Tensor]], out: Path, dtype: torch.dtype) -> int:
    """model-00001.safetensors, ... and their index; or model.safetensors alone if one file is enough."""
    shard: dict[str, Tensor] = {}
    where: dict[str, str] = {}
    files: list[Path] = []
    total = size = 0

    def flush() -> None:
        files.append(out / f"model-{len(files) + 1:05d}.safetensors")
        save_file(shard, files[-1], {"format": "pt"})
        where.update(dict.fromkeys(shard, files[-1].name))
        shard.clear()

    for name, value in weights:
        value = (value.to(dtype) if value.is_floating_point() else value).contiguous().clone()
        if shard and size + value.nbytes > SHARD_BYTES:
            flush()
            size = 0
        shard[name] = value
        size += value.nbytes
        total += value.nbytes
    flush()
    if len(files) == 1:
        files[0].rename(out / "model.safetensors")
    else:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total
