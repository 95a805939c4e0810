"""What a run prints: the phases before step 1, a line every few steps, and a live line at the bottom of a terminal.

Where standard output is not a terminal there are plain lines only, each whole, so that a log can be searched.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from megaunigame.monitoring import names
from megaunigame.monitoring.units import clock_time, duration, memory

BETWEEN = " | "
LONGEST_NAME = 20
"""Characters of the name of a run in the live line."""
BAR = 10
"""Characters of its bar."""
UNKNOWN_TIME = "--:--:--"


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


@contextmanager
def phase(begins: str, done: str, *, shown: bool) -> Iterator[None]:
    """Say that a part of the start begins, and how long it took. `shown`: on this rank."""
    began = time.monotonic()
    if shown:
        say(f"{begins} ...")
    yield
    if shown:
        say(f"{done} in {duration(time.monotonic() - began)}")


class Console:
    """The lines of the steps of one launch."""

    def __init__(self, name: str, *, total_steps: int, start_step: int, live: bool):
        """`live`: show the live line, if standard error is a terminal."""
        self.name, self.total_steps = shortened(name, LONGEST_NAME), total_steps
        self.first: tuple[int, float] | None = None
        """(step, time) of the first step of this launch. It includes warm-up (allocator, compilation), so the time left is
        estimated from what comes after it."""
        self.bar = tqdm(
            total=total_steps,
            initial=start_step - 1,
            bar_format="{desc}",  # all of the line is ours, so that it has the width of the terminal
            disable=None if live else True,  # None: without a terminal
        )

    def step(self, step: int, metrics: Mapping[str, float], *, printed: bool) -> None:
        """A step is done: renew the live line, and print a line if `printed`."""
        now = time.monotonic()
        if self.first is None:
            self.first = (step, now)
        done, elapsed = step - self.first[0], now - self.first[1]
        remaining = elapsed / done * (self.total_steps - step) if done else None
        if not self.bar.disable:
            # One column stays free: some terminals begin a new line in the last one.
            line = live_line(self.name, step, self.total_steps, metrics, remaining, shutil.get_terminal_size().columns - 1)
            self.bar.set_description_str(line, refresh=False)
            self.bar.update(step - self.bar.n)
        if printed:
            parts = line_parts(step, self.total_steps, metrics, remaining)
            self.say(wrapped(parts, shutil.get_terminal_size().columns) if sys.stdout.isatty() else BETWEEN.join(parts))

    def say(self, text: str) -> None:
        """Print lines above the live line."""
        self.bar.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()


def line_parts(step: int, total_steps: int, metrics: Mapping[str, float], remaining: float | None) -> list[str]:
    """The fields of a printed line, of fixed widths: step, time left, speed, losses, gradient, learning rate, MFU, memory."""
    parts = [f"step {step:>{len(str(total_steps))}}/{total_steps}", f"ETA {_clock(remaining):>8}"]
    parts += _formatted(metrics, {names.PERF_ROWS_PER_SECOND: "{:7.1f} rows/s", names.PERF_STEP_SECONDS: "{:7.3f} s/step"})
    parts += [f"{name.removeprefix(names.LOSS)} {metrics[name]:8.4f}" for name in _losses(metrics)]
    parts += _formatted(metrics, {names.OPTIM_GRAD_NORM: "grad {:8.3f}", names.OPTIM_LR: "lr {:8.2e}"})
    return parts + [f"{part:>11}" for part in _of_the_device(metrics)]


def live_line(name: str, step: int, total_steps: int, metrics: Mapping[str, float], remaining: float | None, width: int) -> str:
    """Steps, a bar, and as many fields as fit into `width` columns; the name of the run comes last."""
    full = BAR * step // total_steps
    line = f"{step}/{total_steps} |{'█' * full}{' ' * (BAR - full)}|"
    return line + fitted([*live_parts(metrics, remaining), name], width - len(line))


def live_parts(metrics: Mapping[str, float], remaining: float | None) -> list[str]:
    """The fields of the live line, the most important first."""
    parts = [f"ETA {_clock(remaining)}"]
    parts += _formatted(metrics, {names.PERF_ROWS_PER_SECOND: "{:.1f} rows/s"})
    parts += [f"{name.removeprefix(names.LOSS)} {metrics[name]:.3f}" for name in _losses(metrics)[:1]]
    parts += _formatted(metrics, {names.OPTIM_GRAD_NORM: "grad {:.2f}"}) + _of_the_device(metrics)
    return parts + [f"{name.removeprefix(names.LOSS)} {metrics[name]:.3f}" for name in _losses(metrics)[1:]]


def _losses(metrics: Mapping[str, float]) -> list[str]:
    """Names of the losses, the total first."""
    return sorted((name for name in metrics if name.startswith(names.LOSS)), key=lambda name: name != names.LOSS_TOTAL)


def _formatted(metrics: Mapping[str, float], forms: Mapping[str, str]) -> list[str]:
    return [form.format(metrics[name]) for name, form in forms.items() if name in metrics]


def _of_the_device(metrics: Mapping[str, float]) -> list[str]:
    parts = [f"MFU {100 * metrics[names.PERF_MFU]:.1f} %"] if names.PERF_MFU in metrics else []
    return parts + ([memory(metrics[names.PERF_PEAK_MEMORY_BYTES])] if names.PERF_PEAK_MEMORY_BYTES in metrics else [])


def _clock(remaining: float | None) -> str:
    return UNKNOWN_TIME if remaining is None else clock_time(remaining)


def fitted(parts: Sequence[str], width: int) -> str:
    """As many of the first parts as fit into `width` columns."""
    line = ""
    for part in parts:
        longer = f"{line}{BETWEEN if line else ' '}{part}"
        if len(longer) > width:
            break
        line = longer
    return line


def wrapped(parts: Sequence[str], width: int) -> str:
    """The parts in as few lines of at most `width` columns as possible; a longer part has a line of its own."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}{BETWEEN}{part}"
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(f"    {part}")
    return "\n".join(lines)


def shortened(name: str, most: int) -> str:
    """`name` in at most `most` characters: its beginning and its end, which tells runs of a sweep apart."""
    if len(name) <= most:
        return name
    begin = (most - 1) // 2
    return f"{name[:begin]}…{name[begin + 1 - most :]}"
