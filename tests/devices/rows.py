"""Rows of both passes: some with pictures, some with several turns, one dummy of each."""

from __future__ import annotations

import dataclasses

import torch

from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow

PLAN = plan_from([RowRequest("u", UNDERSTAND, "s", 4, takes_source=True), RowRequest("g", GENERATE, "s", 3, takes_source=True)])


def picture(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def collated(model, independent: bool = False) -> dict[str, PassInputs]:
    """Real inputs of both passes, on the host."""
    turns = [("what is it ?", "a ball"), ("is it large ?", "no")]
    understand = [
        UnderstandRow([picture(0)], turns[:1]),
        UnderstandRow([picture(1)], turns, independent),
        None,
        UnderstandRow([], turns[1:]),
    ]
    generate = [GenerateRow("a ball", picture(2), picture(3), source_gradient=0.5), GenerateRow("no", picture(4)), None]
    rows = {UNDERSTAND: (understand, 0), GENERATE: (generate, 1)}
    return {
        name: model.processor.collate(PLAN, name, given, [term] * len(given), ["key"] * len(given))
        for name, (given, term) in rows.items()
    }


def aside(model) -> dict[str, PassInputs]:
    """Two pictures to attack, on the host, one of them a dummy."""
    plan = plan_from([RowRequest("q", UNDERSTAND, "s", 2), RowRequest("r", GENERATE, "s", 2, takes_source=True)])
    question = [UnderstandRow([picture(5)], [("what is it ?", "a ball")]), None]
    redraw = [GenerateRow("a ball", picture(5), picture(5)), None]
    inputs = {
        "redraw": model.processor.collate(plan, GENERATE, redraw, [1, 1], ["key"] * 2),
        "attack": model.processor.collate(plan, UNDERSTAND, question, [0, 0], ["key"] * 2),
    }
    texts = [("what is it ?", "a ball"), ("", "")]
    return {term: dataclasses.replace(given, texts=texts) for term, given in inputs.items()}
