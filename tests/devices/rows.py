"""Rows of both passes: some with pictures, some with several turns, one dummy of each."""

from __future__ import annotations

import dataclasses

import torch

from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand

PLAN = plan_from([RowRequest("u", UNDERSTAND, "s", 4, takes_source=True), RowRequest("g", GENERATE, "s", 3, takes_source=True)])


def picture(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def collated(model, independent: bool = False) -> dict[str, PassInputs]:
    """Real inputs of both passes, on the host."""
    turns = [("what is it ?", "a ball"), ("is it large ?", "no")]
    talks = UnderstandRow([picture(0)], turns[:1]), UnderstandRow([picture(1)], turns, independent), None
    drawn = GenerateRow("a ball", picture(2), picture(3), source_gradient=0.5), GenerateRow("no", picture(4)), None
    return {UNDERSTAND: understand(model, *talks, UnderstandRow([], turns[1:])), GENERATE: generate(model, *drawn)}


def aside(model) -> dict[str, PassInputs]:
    """Two pictures to attack, on the host, one of them a dummy."""
    inputs = {
        "redraw": generate(model, GenerateRow("a ball", picture(5), picture(5)), None),
        "attack": understand(model, UnderstandRow([picture(5)], [("what is it ?", "a ball")]), None),
    }
    texts = [("what is it ?", "a ball"), ("", "")]
    return {term: dataclasses.replace(given, texts=texts) for term, given in inputs.items()}
