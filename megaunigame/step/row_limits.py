"""How many rows must be seen before a term is judged by its dummies and cut rows."""

from __future__ import annotations

import math

FIRST_ROWS = 100
"""The fractions are of at least this many rows, so that a few early dummies are not too many."""
FEWEST = 8
UNLIKELY = 0.004
"""Largest probability of a false stop by `enough_rows`."""


def enough_rows(max_dummy_fraction: float) -> float:
    """A term that got none of this many rows gets too few of any number: with dummies as frequent as `max_dummy_fraction`
    allows, it would have got one in 99.6 % of all runs. 8 for .5, 108 for .95, never for 1."""
    if max_dummy_fraction >= 1:
        return math.inf
    if max_dummy_fraction <= 0:
        return FEWEST
    return max(FEWEST, math.ceil(math.log(UNLIKELY) / math.log(max_dummy_fraction)))
