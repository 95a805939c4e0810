"""What `import megaunigame` offers for training: the command `megaunigame train`, from Python."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megaunigame import errors
from megaunigame.config import load_recipe
from megaunigame.shipped import program

ERROR = re.compile(r"(?:rank \d+: )?(\w+): (.+)", re.DOTALL)
KEPT_LINES = 30
"""Last lines of a run among which its error is looked for."""


class RunFailed(errors.TransientError):
    """A run ended with an error that is not the user's; what it printed says why."""


def train(recipe: str | os.PathLike[str], *, ranks: int | None = None, **settings: Any) -> Path:
    """Train from a recipe (a file, or the name of a shipped one), or go on with its run; returns the folder of the run.

        megaunigame.train("tiny_sft", ranks=2, output="runs/a", schedule={"steps": 20}, evaluation={"suites": {}})

    `settings` replace those of the recipe, as `schedule.steps=20` does on the command line; `**{"schedule.steps": 20}` is the
    same. `ranks`: processes on this machine; default: one for each GPU. The run is a process of its own, with the environment
    of this one (DS_ACCELERATOR=cpu: on the CPU), and what it prints is printed here. Ctrl-C saves it and raises Interrupted.
    Raises the errors of megaunigame/errors.py; RunFailed for any other end.
    """
    typed = [os.fspath(recipe), *(f"{key}={_as_yaml(key, value)}" for key, value in _flat(settings, ""))]
    loaded = load_recipe(typed[0], typed[1:])
    command = [sys.executable, "-u", *program("train"), *typed]
    said, code = _run(command if ranks is None else [*command, "--ranks", str(ranks)])
    if code == errors.Interrupted.exit_code:
        raise errors.Interrupted(said[-1])
    if code:
        raise _error(said, code)
    return Path(loaded.output)


def _run(command: list[str]) -> tuple[list[str], int]:
    """The last lines of a program that are not empty, and its exit code. Its lines are printed as they come."""
    said: deque[str] = deque([""], KEPT_LINES)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        while True:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    if line.strip():
                        said.append(line.strip())
                return list(said), process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # a notebook interrupts this process alone


def _error(said: list[str], code: int) -> Exception:
    """The error that the last lines of a run name; its message may have several lines."""
    for first in reversed(range(len(said))):
        named = ERROR.fullmatch("\n".join(said[first:]))
        kind = getattr(errors, named[1], None) if named else None
        if named and isinstance(kind, type) and issubclass(kind, errors.UserError | errors.TransientError):
            return kind(named[2])
    return RunFailed(f"The run ended with exit code {code}: {said[-1]}")


def _as_yaml(key: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise errors.ConfigError(
            f"{key}: {value!r} is not a value of a recipe: {error}. Give numbers, texts, lists or mappings."
        ) from error


def _flat(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting. An empty mapping is a value: `evaluation={"suites": {}}` means no suites."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", os.fspath(value) if isinstance(value, os.PathLike) else value
