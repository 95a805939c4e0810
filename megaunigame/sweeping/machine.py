"""How many runs this machine can run at a time, and the command and environment of one run."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from megaunigame.errors import ConfigError
from megaunigame.shipped import program
from megaunigame.sweeping.runs import Run


@dataclass(frozen=True)
class Machine:
    cores: int
    devices: tuple[str, ...]
    """GPUs as in CUDA_VISIBLE_DEVICES; empty: runs use the cores."""


def this_machine() -> Machine:
    """The cores and GPUs this process may use (no GPU with `DS_ACCELERATOR=cpu`, as in training)."""
    import torch  # here: it takes seconds, and only a sweep that starts runs needs it

    cores = len(os.sched_getaffinity(0))
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        return Machine(cores, ())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return Machine(cores, tuple(name.strip() for name in names))


def places(machine: Machine, ranks: int, jobs: int) -> list[dict[str, str]]:
    """One entry per concurrent run: the environment variables that assign its GPUs or cores.

    Each of the `ranks` of a run needs a GPU, or a core without GPUs. `jobs` runs at a time (0: as many as fit) may need more
    cores than there are, but not more GPUs. Raises ConfigError when a run does not fit.
    """
    devices = machine.devices
    if not devices:
        count = jobs or max(1, machine.cores // ranks)
        return [{"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} for _ in range(count)]
    count = jobs or len(devices) // ranks
    if count < 1 or count * ranks > len(devices):
        fit = len(devices) // ranks
        cure = f"Type jobs={fit}." if fit else f"Type ranks={len(devices)}."
        raise ConfigError(f"{max(1, count)} runs of {ranks} ranks do not fit on {len(devices)} GPUs. {cure}")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[i * ranks : (i + 1) * ranks])} for i in range(count)]


def train_command(run: Run, ranks: int) -> list[str]:
    """The command line of a run."""
    return [sys.executable, *program("train"), run.recipe, *run.overrides, "--ranks", str(ranks)]
