"""The examples of docs/extending.md, where a user would put them: each file on the path of the package it belongs to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from megaunigame.data import decode

HERE = Path(__file__).parent / "examples"
ROOMS = ("adversary", "data.sources", "evaluation.suites", "models", "objectives", "representations")


@pytest.fixture(scope="module")
def examples():
    """Afterwards the library is as it was."""
    loaded = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "DECODERS", decode.DECODERS | {})
        for room in ROOMS:
            package = importlib.import_module(f"megaunigame.{room}")
            patch.setattr(package, "__path__", [*package.__path__, str(HERE.joinpath(*room.split(".")))])
        yield HERE
    for name in set(sys.modules) - loaded:
        if str(HERE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
