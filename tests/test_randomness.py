"""Random state as a function of the place in the run."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.randomness import derive, seed_micro_step

HERE = {"seed": 3, "step": 5, "micro": 7, "rank": 11}


def drawn(**place: int) -> float:
    seed_micro_step(**place)
    return torch.rand(()).item()


def test_every_part_of_the_place_gives_another_draw_and_the_same_place_the_same():
    draws = {name: drawn(**{**HERE, name: HERE[name] + 1}) for name in HERE} | {"here": drawn(**HERE)}
    assert len(set(draws.values())) == 5, draws
    assert drawn(**HERE) == draws["here"]


@given(st.sets(st.lists(st.integers(0, 3), max_size=5).map(tuple), min_size=2, max_size=40))
def test_different_parts_give_different_seeds(places):
    """Also those that differ in zeros at their end."""
    assert len({derive(*place) for place in places}) == len(places)
    assert len({derive(7), derive(7, 0), derive(7, 0, 0), derive(0, 7)}) == 4
