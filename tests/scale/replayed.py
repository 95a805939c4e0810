"""A run of the tiny model as one rank of many: start-up, steps, a merge, a save, with every collective and every metadata call.

The trainer, the engine and the checkpoints are those of a run. Only the network is pretended (`tests/scale/group.py`), and the
files of the other ranks, which are links to those of this one.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from megaunigame.config import load_recipe
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.same_start import check_same_start, facts_of_process
from megaunigame.storage.pending import WrittenFile
from megaunigame.training.trainer import Trainer
from tests.multi_process.programs import PLAYED, batches_of
from tests.multi_process.tiny_run import write_data, write_model, write_recipe
from tests.scale.group import Collective, PretendedGroup, pretended_group

STEADY, MERGING = 4, 5
"""The steps that are reported: gather plans are complete from the third on; every fifth merges the hard buffer."""
GAME = {
    **PLAYED,
    "clip": {"model": "tiny-random", "tau": 0.0},
    "buffer": {"merge_every": MERGING, "capacity": 512},
    "pictures_every": 100,
}
NONE = {"understanding": {"rows": 0}, "generation": {"caption_rows": 0}}
CASES: dict[str, dict[str, Any]] = {
    "SFT": {},
    "UniMRG": {**NONE, "unimrg": {"rows": {"understanding": 2, "edges": 1, "pixel": 2}}},
    "AIA": {"aia": {"targets": "relative", "weights": {"generate": 5.0, "understand": 10.0}}},
    "UniGame, alternating": {"unigame": GAME},
    "UniGame, simultaneous": {"unigame": {**GAME, "mode": "simultaneous"}},
}
START, DRY_RUN, STEP, MERGE, SAVE, RESUME = "start-up", "dry run", "step", "step with a merge", "save", "resumed start-up"
OF_FIRST = "rank-00000"
AUDITED = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}


@dataclass(frozen=True)
class Replay:
    """What one rank did."""

    rank: int
    ranks: int
    calls: list[Collective]
    metadata: dict[str, int]
    """Phase -> calls that ask the file system about a path below the run folder."""
    files: int
    """Of the step folder, of all ranks."""
    file_bytes: int
    """Of this rank's part of it."""
    said: list[torch.Tensor]

    def of(self, phase: str) -> list[Collective]:
        return [call for call in self.calls if call.phase == phase]

    def row(self) -> dict[str, Any]:
        """For JSON."""
        phases = [phase for phase in (START, DRY_RUN, STEP, MERGE, SAVE) if self.of(phase)]
        return {
            "rank": self.rank,
            "ranks": self.ranks,
            "phases": {phase: {"calls": self.counts(phase), "bytes": self.kind_bytes(phase)} for phase in phases},
            "metadata": {phase: number for phase, number in self.metadata.items() if phase in (START, SAVE, RESUME)},
            "files": self.files,
            "file_bytes": self.file_bytes,
        }

    def kind_bytes(self, phase: str) -> dict[str, int]:
        """Kind -> bytes."""
        kinds = self.counts(phase)
        return {kind: sum(call.bytes for call in self.of(phase) if call.kind == kind) for kind in kinds}

    def counts(self, phase: str) -> dict[str, int]:
        """Kind -> calls."""
        return dict(sorted(Counter(call.kind for call in self.of(phase)).items()))

    def bytes(self, phase: str) -> int:
        return sum(call.bytes for call in self.of(phase))

    def kinds(self) -> list[str]:
        """Of all calls before the save, in their order."""
        return [call.kind for call in self.calls if call.phase in (START, DRY_RUN, STEP, MERGE)]


class PretendedRanks(Ranks):
    """Its peers write the files that it writes, each under its own name."""

    folder: Path

    def gather_object(self, value: Any) -> list[Any]:
        values = super().gather_object(value)
        if not self.is_main or not isinstance(value, tuple):
            return values
        with unheard():
            partial = next(iter(type(self).folder.glob("checkpoints/saving-*")), None)
            return [value, *(_of_rank(value, rank, partial) for rank in range(1, self.size))]


def _of_rank(value: Any, rank: int, partial: Path | None) -> Any:
    """What another rank says instead of rank 0: only the files that every rank has, under its own name."""
    own = f"rank-{rank:05d}"
    if isinstance(value, WrittenFile):
        name = value.name.replace(OF_FIRST, own)
        assert partial is not None
        os.link(partial / value.name, partial / name)
        return WrittenFile(name, value.bytes, value.sha256)
    if isinstance(value, dict):
        return {name.replace(OF_FIRST, own): size for name, size in value.items() if OF_FIRST in name}
    if isinstance(value, list):
        return [_of_rank(one, rank, partial) for one in value if OF_FIRST in one.name]
    return tuple(_of_rank(one, rank, partial) for one in value) if isinstance(value, tuple) else value


def write_home(home: Path) -> Path:
    """A model, shards, and knobs under which the small weights of the tiny model stay whole, as those of large ones do."""
    write_model(home / "model", width=64)
    write_data(home / "shards")
    (home / "knobs.json").write_text(
        '{"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 1000, '
        '"stage3_prefetch_bucket_size": 20000, "stage3_gather_16bit_weights_on_model_save": false}}'
    )
    return home


def replay(
    home: Path, case: str, rank: int, ranks: int, said: list[torch.Tensor] | None = None, *, resumes: bool = False
) -> Replay:
    """Run `case` as `rank` of `ranks`. `said`: what rank 0 of the same case broadcast, for another rank.

    `resumes`: also begin again from what was saved; only for rank 0, which has the files of all.
    """
    objectives = CASES[case]
    engine = {"ds_config": str(home / "knobs.json"), "precision": "bf16"}
    name = f"{case}-{rank}-of-{ranks}".replace(" ", "-").replace(",", "")
    loader = {
        "workers": 0,
        "prefetch": 2,
        "max_dummy_fraction": 1.0,
        "max_cut_fraction": 1.0,
    }  # one rank of many sees few samples
    file = write_recipe(home / f"{name}.yaml", home, objectives=objectives, engine=engine, loader=loader)
    folder = home / "runs" / name
    recipe = load_recipe(str(file), [f"output={folder}"])
    last = MERGING if "unigame" in objectives else STEADY
    with pretended_group(rank, ranks, said or ()) as group, metadata_calls(folder, group) as asked:
        world = _world(rank, ranks, folder)
        group.phase = START
        check_same_start(world, facts_of_process({"name": recipe.name}))
        trainer = Trainer(recipe, Mesh.of(world))
        group.phase = DRY_RUN
        trainer.dry_run()
        group.phase = ""
        batches = batches_of(trainer, last)
        for step in range(1, last + 1):
            group.phase = {STEADY: STEP, MERGING: MERGE}.get(step, "")
            trainer.train_step(batches)
        group.phase = SAVE
        trainer.saves.begin()
        trainer.parts.checkpoints._attempt.writing.wait()  # type: ignore[union-attr]  (the ranks look until all have written)
        if rank == 0:
            trainer.saves.finish()
            group.phase = ""
            saved = folder / "checkpoints" / f"step-{last:08d}"
            files = list(saved.iterdir())
            of_rank = [one for one in files if "-rank-" not in one.name or OF_FIRST in one.name]
            group.phase = RESUME
            if resumes:
                Trainer(recipe, Mesh.of(world))
        else:
            files = of_rank = list(trainer.parts.checkpoints._attempt.folder.iterdir())  # type: ignore[union-attr]
        group.phase = ""
        calls, told = list(group.calls), list(group.said)
    return Replay(rank, ranks, calls, dict(asked), len(files), sum(one.stat().st_size for one in of_rank), told)


def _world(rank: int, ranks: int, folder: Path) -> PretendedRanks:
    world = PretendedRanks(rank, ranks, 0, torch.device("cpu"))
    PretendedRanks.folder = folder
    return world


_heard: list[Any] = []
"""Where audited calls go; an audit hook cannot be taken back."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard and event in AUDITED:
        _heard[0](arguments[0] if arguments else None)


sys.addaudithook(_hook)


@contextmanager
def unheard() -> Iterator[None]:
    """What the pretending itself asks the file system is not counted."""
    heard = _heard.copy()
    _heard.clear()
    try:
        yield
    finally:
        _heard.extend(heard)


@contextmanager
def metadata_calls(folder: Path, group: type[PretendedGroup]) -> Iterator[Counter[str]]:
    """Counts the calls below `folder` that ask the file system about names: stat, open, rename, ..."""
    counts: Counter[str] = Counter()
    below, stat = str(folder), os.stat

    def count(path: Any) -> None:
        if _heard and isinstance(path, str | os.PathLike) and str(path).startswith(below):
            counts[group.phase] += 1

    def counted(path: Any, *rest: Any, **named: Any) -> os.stat_result:
        count(path)
        return stat(path, *rest, **named)

    _heard.append(count)
    try:
        with mock.patch.object(os, "stat", counted):
            yield counts
    finally:
        _heard.clear()
