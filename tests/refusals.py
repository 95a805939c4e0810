"""Errors that must say something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from megaunigame.errors import ConfigError, UserError


@contextmanager
def refused(*parts: str, error: type[UserError] = ConfigError) -> Iterator[None]:
    """An error whose message has all these parts."""
    with pytest.raises(error) as caught:
        yield
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
