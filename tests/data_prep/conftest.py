"""What the tests of several commands share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main


@pytest.fixture(scope="session")
def ood_scenes(tmp_path_factory) -> Path:
    """Three shards of ten scenes; not to be written to."""
    folder = tmp_path_factory.mktemp("ood_scenes")
    assert main(["scenes", "--out", str(folder), "--count", "30", "--shard-size", "10", "--split", "ood"]) == 0
    return folder


@pytest.fixture
def refusal(capsys) -> Callable[[int], str]:
    """Exit code of a command, which must be that of a refusal -> what it said."""

    def said(code: int) -> str:
        assert code == 2
        return capsys.readouterr().err

    return said


@pytest.fixture
def forked(monkeypatch) -> None:
    """Workers that are forked: spawned ones import torch again, for seconds. Jobs are pickled for both."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
