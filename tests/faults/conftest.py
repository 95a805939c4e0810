"""One fork server and one tiny world for all fault tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.launches import ForkServer
from tests.faults.worlds import write_home


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[ForkServer]:
    with ForkServer(home / "logs") as started:
        yield started
