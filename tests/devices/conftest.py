"""A tiny model of each family."""

from __future__ import annotations

import pytest

from megaunigame.models.harmon import diffusion, masking
from tests.devices.fake_device import on_host
from tests.models.shared import FAMILIES
from tests.multi_process.tiny_run import write_families


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return write_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch):
    """What the host draws for itself is real; what a device keeps between passes is not kept between fake devices."""
    monkeypatch.setattr(masking, "host_number", on_host(masking.host_number))
    monkeypatch.setattr(diffusion, "_kept", diffusion._made)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param
