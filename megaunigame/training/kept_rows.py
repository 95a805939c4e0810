"""Rows of a step whose update was refused, in files: what ran, where it comes from, and its loss.

    <run>/divergence/step-00000012/rank-00000.safetensors   the inputs of passes, as tensors
    <run>/divergence/step-00000012/rank-00000.json          their other fields; term, sample and loss of every row

The JSON file is written last: without it there is nothing to read.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megaunigame.errors import ConfigError, DataError
from megaunigame.step.inputs import PassInputs
from megaunigame.step.kept_inputs import from_parts, to_parts
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pending import PendingFile
from megaunigame.storage.whole_files import write_whole

FOLDER = "divergence"
MOST_BYTES = 256 * 1024**2
"""Of one rank and step."""
MOST_STEPS = 10
"""Step folders of one run."""
REMEDY = "Replay another step, or copy the folder again."


@dataclass(frozen=True)
class KeptRow:
    """One row of a pass."""

    term: str
    objective: str
    key: str
    """Of its sample; empty: a dummy row, or one that a player made."""
    stream: str
    """Empty: a player filled the row."""
    position: int
    """In the stream; -1 without one."""
    shard: str
    """Its file; empty where the stream has no index."""
    loss: str
    """Sum over its loss positions, as a literal of Python: "1.25", "nan", "inf"."""
    counted: bool
    """Whether it has loss positions: dummy rows have none."""


@dataclass(frozen=True)
class KeptPass:
    """One pass of one micro-step of one rank."""

    micro_step: int
    inputs: PassInputs
    rows: list[KeptRow]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in to_parts(self.inputs)[0].values())


@dataclass(frozen=True)
class KeptStep:
    """What one rank kept of a step."""

    step: int
    """Its number; 1 is the first of the run."""
    rank: int
    world_size: int
    seed: int
    passes: list[KeptPass]


def step_folder(run: Path, step: int) -> Path:
    """Of step `step`; 1 is the first of the run."""
    return run / FOLDER / f"step-{step:08d}"


def has_room(run: Path, step: int) -> bool:
    """Whether the rows of a step may be kept: those of `MOST_STEPS` steps are, or it was kept before."""
    kept = {folder.name for folder in (run / FOLDER).glob("step-*")}
    return step_folder(run, step).name in kept or len(kept) < MOST_STEPS


def clear(folder: Path) -> None:
    """Delete what an earlier launch kept of that step, maybe with other ranks; before any rank writes. Raises OSError."""
    for file in sorted(folder.glob("rank-*")):  # descriptions first: without them there is nothing to read
        file.unlink(missing_ok=True)


def write(folder: Path, kept: KeptStep) -> int:
    """Write the files of one rank; passes that would exceed MOST_BYTES are left out, and their number returned.

    Raises OSError.
    """
    name = f"rank-{kept.rank:05d}"
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    left = size = 0
    for each in kept.passes:
        parts, values = to_parts(each.inputs)
        more = sum(tensor.nbytes for tensor in parts.values())
        if size + more > MOST_BYTES:
            left += 1
            continue
        size += more
        prefix = f"{len(described)}."
        tensors |= {prefix + field: tensor for field, tensor in parts.items()}
        rows = [dataclasses.asdict(row) for row in each.rows]
        described.append({"pass": each.inputs.pass_name, "micro_step": each.micro_step, "fields": values, "rows": rows})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)  # of an earlier launch: it must not describe the new tensors
    PendingFile(f"{name}.partial", tensors).write(folder)
    os.replace(folder / f"{name}.partial", folder / f"{name}.safetensors")
    about = {"step": kept.step, "rank": kept.rank, "world_size": kept.world_size, "seed": kept.seed, "left_out": left}
    write_whole(folder / f"{name}.json", json.dumps({**about, "passes": described}, indent=1))
    return left


def read(folder: Path) -> Iterator[KeptStep]:
    """What every rank kept, in rank order. Raises DataError naming the file that is damaged, ConfigError when there is none."""
    files = sorted(folder.glob("rank-*.json"))
    if not files:
        raise ConfigError(f"{folder} holds no kept rows (rank-*.json). Give a folder RUN/{FOLDER}/step-..., or RUN.")
    for file in files:
        about = read_object(file, "a description of kept rows", DataError, REMEDY)
        tensor_file = file.with_suffix(".safetensors")
        try:
            tensors = load_file(tensor_file)
            passes = [_pass(number, each, tensors) for number, each in enumerate(about["passes"])]
            kept = KeptStep(about["step"], about["rank"], about["world_size"], about["seed"], passes)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            what = f"{tensor_file} and {file.name} are not kept rows ({type(error).__name__}: {error})."
            raise DataError(f"{what} {REMEDY}") from error
        yield kept


def newest(run: Path) -> Path:
    """The step folder of the latest step. Raises ConfigError when the run has none."""
    folders: Sequence[Path] = sorted((run / FOLDER).glob("step-*"))
    if not folders:
        raise ConfigError(f"{run} has kept no rows ({FOLDER}/step-...): no update of it was skipped. Give another run.")
    return folders[-1]


def _pass(number: int, described: dict[str, Any], tensors: dict[str, Any]) -> KeptPass:
    prefix = f"{number}."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    inputs = from_parts(described["pass"], own, described["fields"])
    return KeptPass(described["micro_step"], inputs, [KeptRow(**row) for row in described["rows"]])
