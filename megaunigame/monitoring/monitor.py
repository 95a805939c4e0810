"""Logs of a run: metrics.jsonl, the console, pictures for the report, and trackers. Rank 0 only.

Steps count from 1. A run that was killed and resumed has one gapless history: lines logged after the checkpoint are dropped
on resume, and evaluations of later steps are set aside.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from megaunigame.monitoring.console import Console
from megaunigame.monitoring.history import EVALUATIONS, METRICS_FILE, read_first_and
from megaunigame.monitoring.panels import write_panels
from megaunigame.monitoring.shown import answers, of_evaluation, of_panels
from megaunigame.monitoring.trackers.base import RunFacts
from megaunigame.monitoring.trackers.together import Trackers
from megaunigame.pixels import Panel
from megaunigame.storage.json_lines import as_lines, read_lines
from megaunigame.storage.whole_files import write_whole

SET_ASIDE = "set-aside"
"""Folder in that of the evaluations."""
log = logging.getLogger(__name__)


class Monitor:
    """Logs the metrics of a run; on ranks other than 0 every method does nothing."""

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int,
        total_steps: int,
        start_step: int,
        rank: int,
        trackers: Sequence[str],
        progress: bool,
        run: RunFacts | None = None,
        continues: bool = True,
    ):
        """`folder` is that of the run; a line is printed every `every` steps; `start_step` is the first one that this process
        logs; a live line is shown only if standard error is a terminal. `run`: for trackers. `continues`: False when the run
        goes on from another one, so that no evaluation in the folder is of its weights. Raises OSError."""
        self.active = rank == 0
        self.failed: OSError | None = None
        """Why a file cannot be written, such as a full disk. Only the caller can end all ranks with it."""
        if not self.active:
            return
        self.every, self.total_steps, self.first_step = every, total_steps, start_step
        self.folder = folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        logged = last_steps(folder / METRICS_FILE)
        drop_from(folder / METRICS_FILE, start_step)
        aside = set_aside_evaluations(folder / EVALUATIONS, start_step if continues else 0)
        self.file = open(folder / METRICS_FILE, "a", encoding="utf-8")
        run = run or RunFacts(folder.name)
        self.trackers = Trackers(trackers, folder, run, first_step=start_step, logged=logged)
        self.console = Console(run.name, total_steps=total_steps, start_step=start_step, live=progress)
        if aside:
            steps = ", ".join(map(str, aside))
            what = "steps that are made again" if continues else "another run"
            self.say(f"evaluations of {what} ({steps}) are now in {folder / EVALUATIONS / SET_ASIDE}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one optimizer step; every `every` steps, and at the first and the last one, also print it."""
        if not self.active:
            return
        self.record(step, metrics)
        self.console.step(step, metrics, printed=step % self.every == 0 or step in (self.first_step, self.total_steps))

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step or an evaluation to metrics.jsonl and the trackers; prints nothing."""
        if not self.active:
            return
        values = {name: float(value) for name, value in metrics.items()}
        # JSON has neither NaN nor infinity.
        written = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **written}
        with self._noting():
            self._write(json.dumps(line) + "\n")
        self.trackers.scalars(step, values)

    def _write(self, line: str) -> None:
        path = self.folder / METRICS_FILE
        if not path.exists():
            log.warning("%s was deleted while the run writes it: its earlier lines are lost.", path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a", encoding="utf-8")
        try:
            self.file.write(line)
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def panels(self, step: int, panels: Sequence[Panel]) -> None:
        """Keep lines of pictures; report and trackers show them."""
        if self.active and panels:
            with self._noting():
                write_panels(self.folder, step, panels)
            self.trackers.pictures(step, of_panels(panels))

    def evaluated(self, step: int) -> None:
        """An evaluation has left its files in the run folder: show its pictures and answers to the trackers."""
        if not self.active or not self.trackers.deliveries:
            return
        found = read_first_and(self.folder, step)
        if not found or found[-1].step != step:
            return
        try:
            self.trackers.pictures(step, of_evaluation(found[-1]))
        except OSError as error:
            log.warning("The pictures of the evaluation after step %d are not sent to the trackers: %s", step, error)
        for label, text in answers(found[-1], found[0] if len(found) > 1 else None).items():
            self.trackers.text(step, label, text)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = error

    def say(self, text: str) -> None:
        """Print a line above the live line."""
        if self.active:
            self.console.say(text)

    def close(self, *, complete: bool = True) -> None:
        """`complete`: False when a signal or an error ended the run before its last step."""
        if not self.active:
            return
        try:
            self.file.close()
        except OSError as error:  # each line was flushed; an error that ends the run must not be replaced by this one
            log.warning("%s could not be closed: %s", self.folder / METRICS_FILE, error)
        for line in self.trackers.close(complete):
            self.say(line)
        self.console.close()


def last_steps(path: Path) -> dict[str, int]:
    """Metric -> the last step that has it in the metrics of an earlier launch."""
    last: dict[str, int] = {}
    for line in read_lines(path):
        step = line.get("step")
        if isinstance(step, int):
            last |= {name: max(step, last.get(name, step)) for name in line}
    return last


def drop_from(path: Path, step: int) -> None:
    """Remove the lines of `path` from `step` on (from 1: all of them), and damaged ones."""
    if not path.exists():
        return
    lines = read_lines(path) if step > 1 else []
    write_whole(path, as_lines([line for line in lines if isinstance(line.get("step"), int) and line["step"] < step]))


def set_aside_evaluations(evaluations: Path, step: int) -> list[int]:
    """Move the evaluations after `step` steps or more, with their pictures, into a folder of their own, where they replace
    those of the same steps. Returns their steps.

    Nothing may take them for evaluations of the weights that this launch makes: it may have gone back on purpose.
    """
    moved = set()
    for file in sorted(evaluations.glob("step-*"), reverse=True):  # the results before their pictures
        number = file.name.removeprefix("step-").removesuffix(".json")
        if number.isdecimal() and int(number) >= step:
            target = evaluations / SET_ASIDE / file.name
            target.parent.mkdir(exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
            moved.add(int(number))
    return sorted(moved)


def rank_log(folder: str | Path, rank: int) -> logging.Handler:
    """Also write warnings and errors of this rank to `rank_<r>.log`; the file is created by the first of them. Those of rank 0
    stay on the console.

    Returns the handler, which the caller removes from the root logger at the end of the run.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(Path(folder) / f"rank_{rank}.log", delay=True, encoding="utf-8")
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    if rank == 0 and logging.lastResort is not None:  # Python uses it by itself only where there is no other handler
        logging.getLogger("megaunigame").addHandler(logging.lastResort)
    return handler
