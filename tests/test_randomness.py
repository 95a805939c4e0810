"""Random state as a function of the place in the run."""

from __future__ import annotations

import torch

from megaunigame.randomness import seed_micro_step

HERE = {"seed": 3, "step": 5, "micro": 7, "rank": 11}


def drawn(**place: int) -> float:
    seed_micro_step(**place)
    return torch.rand(()).item()


def test_every_part_of_the_place_gives_another_draw_and_the_same_place_the_same():
    draws = {name: drawn(**{**HERE, name: HERE[name] + 1}) for name in HERE} | {"here": drawn(**HERE)}
    assert len(set(draws.values())) == 5, draws
    assert drawn(**HERE) == draws["here"]
