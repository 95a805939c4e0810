"""Exports a training checkpoint as a Hugging Face folder, or as a PEFT adapter.

Runs in one process without a GPU, for any number of training ranks: weights are read one by one, the trained ones from
the slices of all ranks, the others from the model folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from megaunigame.checkpoint.adapter_folder import ADAPTER_WEIGHTS, peft_name
from megaunigame.checkpoint.manifest import MANIFEST
from megaunigame.checkpoint.runs import SavedRun
from megaunigame.checkpoint.starting import weights_of_run
from megaunigame.checkpoint.trained import LORA, saved_learner
from megaunigame.engine.optimizer_slices import AVERAGE, MASTER
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.models.weights.settings_files import check_settings, leave_out_code, read_settings
from megaunigame.models.weights.tensor_files import save_tensors
from megaunigame.storage.spooled_tensors import SpooledTensors

SHARD_BYTES = 5 * 10**9
IN_CACHE = re.compile(r"models--(.+)--(.+)")
"""Name of a folder in the cache of the model hub."""


def check_out(out: Path) -> None:
    """Raise ConfigError for a folder with files: readers would take some of them for those of the new model."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Give the name of a folder.")
    found = sorted(out.glob("*.safetensors*")) or (sorted(out.iterdir()) if out.is_dir() else [])
    if found:
        held = "weights" if ".safetensors" in found[0].name else "files"
        raise ConfigError(f"{out} holds {held} already ({found[0].name}). Give another --out, or delete that folder.")


def hub_id(folder: Path) -> str | None:
    """The id of a model on the hub, if `folder` lies in the hub's cache."""
    found = (IN_CACHE.fullmatch(part) for part in (*folder.parts, *folder.resolve().parts))
    return next((f"{match[1]}/{match[2]}" for match in found if match), None)


def in_transformers_layout(family: type[UnifiedModel], folder: Path) -> bool:
    """Whether transformers reads the model folder: its configuration is that of the class there, not of the official code."""
    return read_settings(folder / "config.json").get("model_type") == family.name


def adapter_base(run: SavedRun) -> Path:
    """The model folder that the adapters of a run belong to. Raises ConfigError when no folder holds that model."""
    if not run.start:
        return run.model_path
    if (Path(run.start) / MANIFEST).is_file():
        raise ConfigError(
            f"The adapters of {run.folder} belong to the weights of the run it began with ({run.start}), which no model folder "
            "holds. Leave out --adapter to export them merged."
        )
    return Path(run.start)


def export_model(family: type[UnifiedModel], run: SavedRun, out: Path, dtype: torch.dtype) -> int:
    """Write a Hugging Face folder with the trained weights, adapters merged; returns its weights' bytes.

    In the files, frozen tokenizers keep the dtype they are stored in: rounded to bf16, one target code in a hundred is another.
    transformers rounds them when it loads the folder; the card says how to load them exactly where they read pictures.
    """
    path = str(run.model_path)
    merged, frozen = weights_of_run(family, run), family.frozen_weights(path)
    merged.check()
    check_settings(run.model_path)
    family.write_settings(path, out)
    leave_out_code(out)
    if family.in_transformers:
        _say_dtype(out / "config.json", dtype)
    if family.frozen_folder:
        (out / family.frozen_folder).mkdir(exist_ok=True)
        written = write_shards(_read(frozen), out / family.frozen_folder, dtype, exact=frozen.names())
        return written + write_shards(_read(merged), out, dtype)
    return write_shards(_read(merged, frozen), out, dtype, exact=frozen.names())


def _read(*several: Weights) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, in order, one tensor at a time."""
    return ((name, weights.read(name)) for weights in several for name in sorted(weights.names()))


def export_adapter(family: type[UnifiedModel], run: SavedRun, out: Path, base: str) -> int:
    """Write the adapters and the processor; returns the bytes of the adapters.

    PEFT loads them with `PeftModel.from_pretrained(base model, out)`, where transformers has a class for the base. `base`: how
    adapter_config.json names the base, an absolute path or an id of the model hub.
    """
    check_settings(run.model_path)
    family.write_processor(str(run.model_path), out)
    leave_out_code(out)
    saved = saved_learner(run.step_folder)
    kind = AVERAGE if run.averaged else MASTER
    adapters = {name: saved.whole(name, kind) for name in saved.layouts if LORA.fullmatch(name)}
    tensors = {peft_name(name): value.contiguous() for name, value in adapters.items()}
    save_tensors(tensors, out / ADAPTER_WEIGHTS)
    modules = sorted({name.split(".lora_")[0] for name in adapters})
    lora = run.recipe.model.lora
    # Full module names: the vision tower has projections of the same last name, which have no adapters.
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=modules,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    settings.save_pretrained(str(out))
    return (out / ADAPTER_WEIGHTS).stat().st_size


def _say_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """transformers loads a model in the dtype that its configuration names: that of the base may be another."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in ("dtype", "torch_dtype"):
            part.pop(name, None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_shards(
    weights: Iterator[tuple[str, Tensor]], out: Path, dtype: torch.dtype, exact: Container[str] = frozenset()
) -> int:
    """model-00001.safetensors, ... and their index; or model.safetensors alone if one file is enough.

    `exact`: names of tensors that keep their dtype. Holds one tensor at a time.
    """
    shard = SpooledTensors(out)
    where: dict[str, str] = {}
    files: list[Path] = []
    total = 0

    def flush() -> int:
        files.append(out / f"model-{len(files) + 1:05d}.safetensors")
        shard.write(files[-1])
        where.update(dict.fromkeys(shard.names(), files[-1].name))
        return shard.bytes

    for name, value in weights:
        kept = value.dtype if name in exact or not value.is_floating_point() else dtype
        if len(shard) and shard.bytes + value.numel() * kept.itemsize > SHARD_BYTES:
            total += flush()
            shard = SpooledTensors(out)
        shard.add(name, value, kept)
        del value  # or it would be held while the next one is read
    total += flush()
    if len(files) == 1:
        files[0].rename(out / "model.safetensors")
    else:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total
