"""A tiny model of each family."""

from __future__ import annotations

import pytest

from megaunigame.models.base import UnifiedModel
from megaunigame.registry import available
from tests.multi_process.tiny_run import FOLDERS, write_emu3, write_model, write_openuni

WRITERS = {"janus": write_model, "openuni": write_openuni, "emu3": write_emu3}


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    assert set(WRITERS) == set(available("models", UnifiedModel)), "a family without a tiny model"
    home = tmp_path_factory.mktemp("families")
    for family, write in WRITERS.items():
        write(home / FOLDERS[family])
    return home


@pytest.fixture(params=sorted(WRITERS))
def family(request):
    return request.param
