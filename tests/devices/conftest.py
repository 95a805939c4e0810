"""A tiny model of each family."""

from __future__ import annotations

import pytest

from tests.models.shared import FAMILIES
from tests.multi_process.tiny_run import write_families


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return write_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param
