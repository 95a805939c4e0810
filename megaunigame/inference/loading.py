"""Loading a model for use: one process, no engine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from megaunigame.errors import CapacityError, ConfigError
from megaunigame.inference.model import Model
from megaunigame.inference.source import Source, find_source
from megaunigame.models.family import MAX_LENGTH
from megaunigame.models.weights.loading import load_whole
from megaunigame.models.weights.settings_files import read_settings
from megaunigame.parallel.accelerator import choose_device, configure
from megaunigame.registry import unknown, use_plugins
from megaunigame.storage.foreign_text import one_line, quoted

DEVICE = re.compile("cpu|cuda(?::([0-9]{1,4}))?")
DTYPES = ("float32", "bfloat16", "float16")


def load(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    family: str = "",
    base: str | Path | None = None,
    max_length: int | None = None,
    attention: str = "sdpa",
    ema: bool = False,
    plugins: Sequence[str] = (),
) -> Model:
    """A model to ask and to draw with.

    `folder`: a model folder of any family (Hugging Face layout or the official release, also an export), a folder of exported
    adapters, a run (its newest checkpoint), or RUN/checkpoints/step-... .
    `device` None: the GPU of this process, else the CPU. `dtype` None: bfloat16 on a GPU, float32 on the CPU; the frozen image
    tokenizer is always float32. `family`: of a folder whose configuration does not tell. `base`: the folder of the model that
    adapters belong to, if it is not where they say; of a run, where its `model.path` lies now. `max_length`: longest row in
    tokens, pictures included; None: the positions that the model was trained on, else 2048. `attention`: as `model.attention`
    of a recipe. `ema`: of a run, the average of the weights that `ema.decay` has kept. `plugins`: names of Python modules with
    families of your own; they are imported.

    Turns TF32 off for this process: with it, a tokenizer chooses other codes. Raises ConfigError (CapacityError: no memory),
    ModelError or CheckpointError, whose message says what to type.
    """
    use_plugins([plugins] if isinstance(plugins, str) else plugins)
    source = find_source(folder, family=family, base=base, ema=ema)
    return load_source(source, device=device, dtype=dtype, max_length=max_length, attention=attention)


def load_source(
    source: Source,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_length: int | None = None,
    attention: str = "sdpa",
    checked: bool = False,
) -> Model:
    """`load` of what `find_source` has found. `checked`: `Source.check` was called, by some rank."""
    check_max_length(max_length)
    place = device_of(device)
    numbers = dtype_of(dtype, place)
    if not checked:
        source.check()
    configure(place, deterministic=False)
    try:
        network = load_whole(
            source.family,
            source.folder,
            source.open_weights(),
            attention=attention,
            max_length=max_length or source.family.trained_positions(str(source.folder)) or MAX_LENGTH,  # never 0
            gradient_checkpointing=False,
            device=place,
            dtype=numbers,
        )
    except torch.OutOfMemoryError as error:
        smaller = 'Type --dtype bfloat16 (in Python dtype="bfloat16"), or take' if numbers == torch.float32 else "Take"
        name = str(numbers).removeprefix("torch.")
        raise CapacityError(
            f"{source.what} does not fit into the memory of {place} in {name}. {smaller} a GPU with more memory, or one that "
            "nobody else uses."
        ) from error
    network.requires_grad_(False)
    return Model(source, network, place, default_guidance(source))


def device_of(device: str | torch.device | None) -> torch.device:
    """Of this process; "cuda" is the GPU number LOCAL_RANK of the machine.

    Raises ConfigError for a device that does not exist, and, with several processes, for the GPU of another one.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        return choose_device(local_rank) if on_gpu else torch.device("cpu")
    named = DEVICE.fullmatch(str(device))
    if named is None:
        raise ConfigError(f"--device {quoted(str(device))} (in Python device=) is not cpu, cuda or cuda:N. Give one of them.")
    if str(device) == "cpu":
        return torch.device("cpu")
    found = torch.device("cuda", int(named[1] or local_rank))  # torch.cuda.set_device takes no device without a number
    gpus = torch.cuda.device_count()
    if found.index >= gpus:
        legal = " or ".join(filter(None, ["cpu", f"cuda:0 to cuda:{gpus - 1}" if gpus else ""]))
        raise ConfigError(f"No device {found}: torch sees {gpus} GPU(s) on this machine. Give {legal}.")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        said = one_line(str(error).splitlines()[0])
        raise ConfigError(f"{found} cannot be used: {said}. Give another device.") from error
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and found.type == "cuda" and found.index != local_rank:
        raise ConfigError(
            f"{found} is not the GPU of this process, which is number {local_rank} of its machine, of {processes} in all. Type "
            '--device cuda (in Python device="cuda"): each process then takes a GPU of its own.'
        )
    return found


def check_max_length(max_length: int | None) -> None:
    """Raises ConfigError for a length that no row has."""
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length (--max-length) must be 1 or more; got {max_length}.")


def dtype_of(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Raises ConfigError for a dtype that no model computes in."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(unknown("dtype", name, list(DTYPES)))
    return getattr(torch, name)  # type: ignore[no-any-return]


def default_guidance(source: Source) -> float:
    """`guidance_scale` of the folder's generation_config.json, else that of the family's release."""
    named = read_settings(source.folder / "generation_config.json").get("guidance_scale")
    return float(named) if isinstance(named, int | float) and named >= 0 else source.family.released_guidance
