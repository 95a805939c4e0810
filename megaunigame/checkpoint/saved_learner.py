"""Reads the learner's files of a step folder, for any number of ranks: element ranges, or one whole tensor at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megaunigame.checkpoint.unreadable import reading, unreadable
from megaunigame.engine.optimizer_slices import AVERAGE, MASTER, MOMENTS, Layout
from megaunigame.errors import CheckpointError
from megaunigame.storage.disk_errors import NOT_A_FILE, may_pass
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pieces import Piece, data_offsets
from megaunigame.storage.retries import retried

FORMAT = 1
"""Of the files of a learner; a reader refuses others."""
FILE, DESCRIPTION = "learner-rank-{:05d}.safetensors", "learner.json"
OF_RANK = re.compile(r"learner-rank-\d+\.safetensors")
PICKLES = "*_optim_states.pt"
"""What step folders held before there was a format: files of the engine, which only its pickle loader reads."""
ELSEWHERE = "Resume from an older step folder, checkpoint.resume=PATH/step-..., or type checkpoint.resume=never."
MOST = 2**48
"""Ranks, updates and elements above this are not ours."""


def as_json(ranks: int, updates: int, layouts: Mapping[str, Layout], *, averaged: bool = False) -> str:
    """learner.json: of all ranks, written by one. `averaged`: there are slices of an average."""
    parameters = {name: asdict(layout) for name, layout in layouts.items()}
    average = {AVERAGE: True} if averaged else {}
    return json.dumps({"format": FORMAT, "ranks": ranks, "updates": updates, **average, "parameters": parameters})


def is_of_weights(name: str) -> bool:
    """Whether weights are read from the file `name` of a step folder; the moments are in the same files."""
    return name == DESCRIPTION or OF_RANK.fullmatch(name) is not None


class SavedLearner:
    """What a step folder has of the learner. Opening it reads learner.json alone."""

    def __init__(self, folder: Path):
        """Raises CheckpointError: not there, damaged, or of another format."""
        self.folder = folder
        with reading(folder):
            is_early = not (folder / DESCRIPTION).is_file() and any(folder.glob(PICKLES))
        if is_early:
            raise CheckpointError(
                f"{folder} was saved by an early version of megaunigame, as the engine's pickles ({PICKLES}), which could run "
                "any code and are not loaded any more. Resume it with the version that saved it (run.json of the run names its "
                "commit); or export it there (megaunigame export RUN --out FOLDER), and begin a run here with the exported "
                "weights: model.weights_from=FOLDER in another `output`."
            )
        path, what = folder / DESCRIPTION, "the description of a saved learner"
        with reading(folder):
            content = retried(lambda: read_object(path, what, CheckpointError, ELSEWHERE, disk_errors=True))
        if content.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / DESCRIPTION} has format {content.get('format')!r}, this version of megaunigame reads {FORMAT}. "
                f"Resume with the version that saved it. {ELSEWHERE}"
            )
        try:
            self.ranks, self.updates = _whole(content["ranks"], 1), _whole(content["updates"], 0)
            self.averaged = content.get(AVERAGE, False) is True
            """Whether there are slices of an average of the weights."""
            self.layouts = {name: _layout(entry, self.ranks) for name, entry in content["parameters"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / DESCRIPTION} is not the description of a saved learner ({type(error).__name__}: {error}). "
                f"{ELSEWHERE}"
            ) from error
        self._opened: dict[int, Any] = {}
        self._offsets: dict[int, dict[str, range]] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the slices it has; before the first update there are no moments."""
        return (MASTER, *(MOMENTS if self.updates else ()), *((AVERAGE,) if self.averaged else ()))

    def check_slices(self, wanted: Iterable[tuple[str, range]]) -> None:
        """Raise CheckpointError unless the files have all these elements, of every kind; reads no tensor."""
        for name, elements in wanted:
            for rank in self.layouts[name].ranks_of(elements):
                for kind in self.kinds:
                    self._slice(rank, kind, name)

    def read_into(self, target: Tensor, kind: str, name: str, elements: range) -> None:
        """Copy these elements of a flattened parameter into `target` (len(elements),), on any device."""
        layout = self.layouts[name]
        for rank in layout.ranks_of(elements):
            has = layout.of_rank(rank)
            start, stop = max(has.start, elements.start), min(has.stop, elements.stop)
            try:
                found = self._slice(rank, kind, name)[start - has.start : stop - has.start]
            except SafetensorError as error:
                raise self._damaged(rank, f"{kind}/{name}: {error}") from error
            target[start - elements.start : stop - elements.start].copy_(found)

    def whole(self, name: str, kind: str = MASTER) -> Tensor:
        """The master weight of a parameter, or its average, in its shape, float32 on the host."""
        layout = self.layouts[name]
        flat = torch.empty(layout.numel)
        self.read_into(flat, kind, name, range(layout.numel))
        return flat.view(layout.shape)

    def pieces(self, name: str, kind: str = MASTER) -> list[Piece]:
        """Where the elements of a flattened parameter lie, in the files of the ranks that have some."""
        layout, found = self.layouts[name], []
        for rank in layout.ranks_of(range(layout.numel)):
            count = len(layout.of_rank(rank))
            if not count:
                continue
            self._slice(rank, kind, name)
            if rank not in self._offsets:
                self._offsets[rank] = data_offsets(self.folder / FILE.format(rank))
            lies = self._offsets[rank][f"{kind}/{name}"]
            found.append(Piece(str(self.folder / FILE.format(rank)), lies.start, torch.float32, count))
        return found

    def _slice(self, rank: int, kind: str, name: str) -> Any:
        """What `rank` wrote of a parameter, not read yet. Raises CheckpointError if it is not what learner.json says."""
        key, length = f"{kind}/{name}", len(self.layouts[name].of_rank(rank))
        try:
            found = self._open(rank).get_slice(key)
            dtype, shape = found.get_dtype(), found.get_shape()
        except SafetensorError as error:
            raise self._damaged(rank, f"{key}: {error}") from error
        except OSError as error:
            if error.errno in (None, *NOT_A_FILE):  # safetensors gives no number with "No such file"
                raise self._damaged(rank, f"{key}: {error}") from error
            raise unreadable(self.folder, f"{FILE.format(rank)}: {error}", transient=may_pass(error)) from error
        if (dtype, shape) != ("F32", [length]):
            raise self._damaged(rank, f"{key} is {dtype} {shape}, {DESCRIPTION} says F32 [{length}]")
        return found

    def _open(self, rank: int) -> Any:
        if rank not in self._opened:
            self._opened[rank] = safe_open(self.folder / FILE.format(rank), framework="pt")
        return self._opened[rank]

    def _damaged(self, rank: int, what: str) -> CheckpointError:
        return CheckpointError(f"{self.folder / FILE.format(rank)} is missing or damaged ({what}). {ELSEWHERE}")


def _whole(value: Any, least: int) -> int:
    if type(value) is not int or not least <= value < MOST:
        raise ValueError(f"{value!r} is not a number from {least}")
    return value


def _layout(entry: Any, ranks: int) -> Layout:
    layout = Layout(
        tuple(_whole(side, 0) for side in entry["shape"]),  # 0: a parameter without elements, which has no slice either
        *(_whole(entry["offset"], 0), _whole(entry["slice_size"], 0)),
    )
    if math.prod(layout.shape) >= MOST or layout.offset + layout.numel > ranks * layout.slice_size:
        raise ValueError(f"{entry} does not fit into the slices of {ranks} ranks")
    return layout
