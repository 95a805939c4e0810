"""Data that one rank of two cannot fetch: both end within seconds, with the rank named; and a lost shard, by both policies.

    python -m tests.multi_process.data_faults HOME CASE...

Prints a line per case that held.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from megaunigame.config import Recipe, load_recipe
from megaunigame.errors import DataError, LoaderError, UserError
from megaunigame.monitoring.monitor import Monitor
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks, start_world
from megaunigame.training.trainer import Trainer
from tests.multi_process.tiny_run import write_recipe

SECONDS = 30
"""Far below the limit of a collective (a minute): nobody waited for it."""


def recipe_of(home: Path, world: Ranks, case: str, **loader) -> Recipe:
    folder = home / case
    if world.is_main:
        folder.mkdir()
        shutil.copytree(home / "shards", folder / "shards")
        settings = {"output": str(folder / "run"), "data": {"train": {"shards": str(folder / "shards"), "window": 1}}}
        write_recipe(folder / "recipe.yaml", home, **settings, loader={"workers": 1, "prefetch": 1, **loader})
    world.barrier()
    return load_recipe(str(folder / "recipe.yaml"), [])


def trained(world: Ranks, recipe: Recipe, steps: int, at: int = 0, then: Callable[[Trainer], object] | None = None) -> Trainer:
    """`steps` steps; before step `at`, `then(trainer)` is done on rank 1, where all loaders are already at work."""
    trainer = Trainer(recipe, Mesh.of(world))
    batches = trainer._loader()
    for step in range(steps):
        if step == at and then is not None and world.rank == 1:
            then(trainer)
        trainer.train_step(batches)
    return trainer


def ends(kind: type[UserError], words: str, work: Callable[[], object]) -> None:
    """On both ranks, soon, with the rank named."""
    began = time.monotonic()
    try:
        work()
    except kind as error:
        assert "Rank 1 (" in str(error) and words in str(error), error
        assert time.monotonic() - began < SECONDS
    else:
        raise AssertionError(f"no {kind.__name__}")


def one_rank(world: Ranks, home: Path) -> None:
    """A source that only rank 1 cannot read."""

    def broken(trainer: Trainer) -> None:
        def find(position: int, attempt: int):
            raise DataError("its index is broken")

        trainer.streams["train"].source.find = find

    recipe = recipe_of(home, world, "one_rank", workers=0)
    ends(DataError, "its index is broken", lambda: trained(world, recipe, 2, 1, broken))


def killed(world: Ranks, home: Path) -> None:
    def kill(_: Trainer) -> None:
        os.kill(multiprocessing.active_children()[-1].pid or 0, signal.SIGKILL)

    recipe = recipe_of(home, world, "killed")
    ends(LoaderError, "was killed by SIGKILL", lambda: trained(world, recipe, 6, 1, kill))


def remove(recipe: Recipe) -> str:
    """The second shard is gone for all processes; returns its name."""
    second = sorted(Path(recipe.data["train"].shards).glob("*.tar"))[1]
    for path in second.parent.glob(f"{second.stem}.*"):
        path.unlink()
    return second.name


def lost_stop(world: Ranks, home: Path) -> None:
    recipe = recipe_of(home, world, "lost_stop", lost_shard_wait=0.03)  # 1.8 s
    try:
        trained(world, recipe, 6, 1, lambda _: remove(recipe))
    except DataError as error:
        assert "data-000001" in str(error) and "loader.lost_shard=substitute" in str(error) and "Rank " in str(error)
    else:
        raise AssertionError("the shard is gone")


def lost_substitute(world: Ranks, home: Path) -> None:
    options = {"lost_shard": "substitute", "lost_shard_wait": 0.03, "max_bad_fraction": 1.0}
    recipe = recipe_of(home, world, "lost_substitute", **options)
    trainer = trained(world, recipe, 6, 1, lambda _: remove(recipe))
    assert trainer.bad_samples.bad["train"] > 0
    if world.is_main:
        lines = [json.loads(line) for line in (Path(recipe.output) / "quarantine.jsonl").read_text().splitlines()]
        assert [(line["shard"], line["key"]) for line in lines] == [("data-000001.tar", "")], lines


def disk_full(world: Ranks, home: Path) -> None:
    """Rank 0 alone writes metrics; both end at the next fetch, with the file and the disk named, and what was saved stays."""
    recipe = recipe_of(home, world, "disk_full", workers=0)
    recipe.checkpoint.every = 2
    trainer, write = Trainer(recipe, Mesh.of(world)), Monitor._write
    written: list[str] = []

    def fills(monitor: Monitor, line: str) -> None:
        written.append(line)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(monitor.folder / "metrics.jsonl"))
        write(monitor, line)

    Monitor._write = fills  # type: ignore[method-assign]
    try:
        trainer.fit()
    except (OSError, UserError) as error:
        assert isinstance(error, OSError) == world.is_main and "No space left on device" in str(error), error
        assert "metrics.jsonl" in str(error)
    else:
        raise AssertionError("the disk is full")
    finally:
        Monitor._write = write  # type: ignore[method-assign]
    assert trainer.state.step == 3
    world.barrier()
    assert len(list((Path(recipe.output) / "checkpoints").glob("step-*2"))) == 1


CASES = {function.__name__: function for function in (one_rank, killed, lost_stop, lost_substitute, disk_full)}


def main() -> None:
    home, *cases = sys.argv[1:]
    world = start_world(1.0)
    for case in cases:
        CASES[case](world, Path(home))
        if world.is_main:
            print(f"{case}: held", flush=True)
        world.barrier()
    world.close()
    sys.stdout.flush()
    os._exit(0)  # as launch scripts end: loader workers ignore the SIGTERM of the interpreter's own end, which waits for them


if __name__ == "__main__":
    main()
