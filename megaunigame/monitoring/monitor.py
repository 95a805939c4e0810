"""Logs of a run: metrics.jsonl, TensorBoard, a progress bar and a line every few steps. Rank 0 only.

Steps count from 1. A run that was killed and resumed has one gapless history: lines logged after the checkpoint are dropped
on resume.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from megaunigame.monitoring import names
from megaunigame.monitoring.panels import write_panels
from megaunigame.pixels import Panel
from megaunigame.storage.json_lines import as_lines, read_lines
from megaunigame.storage.whole_files import write_whole

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"


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
        tensorboard: bool,
        progress: bool,
    ):
        """`folder` is that of the run; a line is printed every `every` steps; `start_step` is the first one that this process
        logs; a progress bar is shown only if standard error is a terminal. Raises OSError."""
        self.active = rank == 0
        self.failed: OSError | None = None
        """Why a file cannot be written, such as a full disk. Only the caller can end all ranks with it."""
        if not self.active:
            return
        self.every, self.total_steps, self.first_step = every, total_steps, start_step
        self.folder = folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        drop_from(folder / METRICS_FILE, start_step)
        self.file = open(folder / METRICS_FILE, "a", encoding="utf-8")
        self.writer = self._tensorboard(start_step) if tensorboard else None
        self.bar = tqdm(
            total=total_steps,
            initial=start_step - 1,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            disable=None if progress else True,  # None: without a terminal
        )
        self.origin: tuple[int, float] | None = None  # (step, time) of the first logged step

    def _tensorboard(self, start_step: int) -> Any:
        """A writer; None, with a warning, when its folder cannot be written: the same numbers are in metrics.jsonl."""
        # Imported here: it takes seconds, and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        try:
            return SummaryWriter(str(self.folder / "tensorboard"), purge_step=start_step)
        except OSError as error:
            log.warning("No TensorBoard: %s. The metrics are in %s.", error, self.folder / METRICS_FILE)
            return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one optimizer step; every `every` steps, and at the first and the last one, also print it."""
        if not self.active:
            return
        self.record(step, metrics)
        now = time.monotonic()
        if self.origin is None:
            # The first step includes warm-up (allocator, compilation); the estimate of the time left starts after it.
            self.origin = (step, now)
        done, elapsed = step - self.origin[0], now - self.origin[1]
        remaining = elapsed / done * (self.total_steps - step) if done else None
        self.bar.update(step - self.bar.n)
        if step % self.every == 0 or step in (self.first_step, self.total_steps):
            self.say(log_line(step, self.total_steps, metrics, remaining))

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics of a step or an evaluation to metrics.jsonl and TensorBoard; prints nothing."""
        if not self.active:
            return
        values = {name: float(value) for name, value in metrics.items()}
        # JSON has neither NaN nor infinity.
        written = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **written}
        with self._noting():
            self._write(json.dumps(line) + "\n")
        if self.writer is None:
            return
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        except OSError as error:
            log.warning("TensorBoard ends here: %s. The metrics are in %s.", error, self.folder / METRICS_FILE)
            self.writer = None

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
        """Keep lines of pictures; the report shows them."""
        if self.active and panels:
            with self._noting():
                write_panels(self.folder, step, panels)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = error

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        if self.active:
            self.bar.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        if not self.active:
            return
        self.file.close()
        if self.writer is not None:
            self.writer.close()
        self.bar.close()


def drop_from(path: Path, step: int) -> None:
    """Remove the lines of `path` from `step` on (from 1: all of them), and damaged ones."""
    if not path.exists():
        return
    lines = read_lines(path) if step > 1 else []
    write_whole(path, as_lines([line for line in lines if isinstance(line.get("step"), int) and line["step"] < step]))


def log_line(step: int, total_steps: int, metrics: Mapping[str, float], remaining: float | None) -> str:
    """One line of fixed-width fields: step, losses, learning rate, gradient norm, throughput, time left."""
    width = len(str(total_steps))
    parts = [f"step {step:>{width}}/{total_steps}"]
    parts += [f"{name.removeprefix(names.LOSS)} {metrics[name]:8.4f}" for name in metrics if name.startswith(names.LOSS)]
    fields = {
        names.OPTIM_LR: "lr {:8.2e}",
        names.OPTIM_GRAD_NORM: "grad {:8.3f}",
        names.PERF_ROWS_PER_SECOND: "{:7.1f} rows/s",
        names.PERF_STEP_SECONDS: "{:7.3f} s/step",
    }
    parts += [form.format(metrics[name]) for name, form in fields.items() if name in metrics]
    parts.append(f"ETA {'--:--:--' if remaining is None else clock_time(remaining):>9}")
    return " | ".join(parts)


def clock_time(seconds: float) -> str:
    """Seconds as h:mm:ss; days come first when there are any."""
    whole = round(seconds)
    days, whole = divmod(whole, 86_400)
    text = f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{days}d {text}" if days else text


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
