"""These tests need a GPU: `make test-gpu`. Elsewhere they are skipped, with the reason."""

from __future__ import annotations

import pytest

from megaunigame.errors import ConfigError
from megaunigame.parallel.accelerator import choose_device


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """The first GPU."""
    try:
        device = choose_device(0)
    except ConfigError as error:
        pytest.skip(str(error))
    if device.type == "cpu":
        pytest.skip("DS_ACCELERATOR=cpu is set; type make test-gpu")
    return device
