"""The game on a tiny random Janus, and data for it."""

from __future__ import annotations

import pytest

from megaunigame.models.janus import Janus
from tests.multi_process.tiny_run import write_model
from tests.objectives.played_by_hand import DATA, Played, shards


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("game")
    write_model(folder / "model")
    for name, numbers in DATA.items():
        shards(folder / name, numbers)
    return folder


@pytest.fixture
def play(home):
    """`play(data="pictures", **settings)`: a game on that data, with its own model."""

    def play(data="pictures", max_length=96, **settings):
        return Played(Janus.load(home / "model", max_length=max_length).train(), home / data, **settings)

    return play
