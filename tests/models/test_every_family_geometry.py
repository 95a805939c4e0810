"""One geometry per row: what a source shows, its target shows, whole or cut, in every family."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megaunigame.objectives.generation import PIXEL, Generation
from megaunigame.objectives.unigame import UniGame
from megaunigame.objectives.unigame.attack import ATTACK, REDRAW
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.objectives.unimrg import UniMRG
from megaunigame.settings import fill
from megaunigame.step.requests import CROP, FIT, GENERATE, GEOMETRIES, SQUASH, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow

RED = torch.tensor([255, 0, 0], dtype=torch.uint8)


def photograph(height: int = 480, width: int = 640) -> torch.Tensor:
    """Gray, with a red square at the left edge: uint8 (3, height, width)."""
    image = torch.full((3, height, width), 100, dtype=torch.uint8)
    image[:, height // 2 - 40 : height // 2 + 40, :80] = RED[:, None, None]
    return image


def place(pixels: torch.Tensor) -> tuple[float, float, float]:
    """Of the red in (3, H, W), any scale: x and y of its center and the root of its area, as shares of the side."""
    red = (pixels[0] - pixels[1]).float().clamp(min=0)
    if red.max() < 1e-3:
        return (-1.0, -1.0, 0.0)
    red, axis = red / red.max(), (torch.arange(len(red)) + 0.5) / len(red)
    return float((red.sum(0) * axis).sum() / red.sum()), float((red.sum(1) * axis).sum() / red.sum()), float(red.mean().sqrt())


def same_place(pixels: torch.Tensor) -> object:
    return pytest.approx(place(pixels), abs=0.06)  # sides of 12 and of 16 pixels do not cut at the same places


def unnormalized(model, source: torch.Tensor) -> torch.Tensor:
    normalize = model.processor.normalize_source
    return (source - normalize.shift) / normalize.scale


def plan(geometry: str):
    given = {"takes_source": True, "geometry": geometry}
    return plan_from([RowRequest("u", UNDERSTAND, "s", 1, geometry=geometry), RowRequest("g", GENERATE, "s", 1, **given)])


def drawn(model, geometry, source, target):
    return model.processor.collate(plan(geometry), GENERATE, [GenerateRow("a", target, source)], [1], ["k"])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(480, 640), (300, 150)])
def test_source_and_target_of_a_row_show_the_same(model, geometry, size):
    inputs = drawn(model, geometry, photograph(*size), photograph(*size))
    seen = unnormalized(model, inputs.images[0, 0])
    assert place(seen) == same_place(inputs.targets[0])
    assert (place(seen)[2] > 0) == (geometry != CROP or size[0] > size[1])
    asked = model.processor.collate(plan(geometry), UNDERSTAND, [UnderstandRow([photograph(*size)], [("q", "a")])], [0], ["k"])
    assert torch.equal(asked.images, inputs.images)


def test_maps_of_another_size_stay_aligned(model):
    small = F.interpolate(photograph()[None].float(), (120, 160), mode="area")[0].to(torch.uint8)
    inputs = drawn(model, SQUASH, photograph(), small)
    assert place(unnormalized(model, inputs.images[0, 0])) == same_place(inputs.targets[0])


def test_defaults_of_requests():
    assert RowRequest("u", UNDERSTAND, "s", 1).geometry == FIT and RowRequest("g", GENERATE, "s", 1).geometry == CROP
    pixel = next(r for r in Generation(Generation.Config(pixel_rows=1)).rows() if r.term == PIXEL)
    assert pixel.geometry == CROP
    assert {r.term: r.geometry for r in UniMRG(fill(UniMRG.Config, {}, "objectives.unimrg")).rows()} == {
        "understanding": FIT, "depth": SQUASH, "pixel": SQUASH, "segmentation": SQUASH,
    }  # fmt: skip


@pytest.mark.parametrize("geometry", [FIT, SQUASH])
def test_an_attacked_picture_is_about_what_the_question_is_about(model, geometry):
    """At delta = 0 the object at the edge of a 640 x 480 photograph is still there: a center crop would lose it."""
    objective = UniGame(fill(Settings, {"geometry": geometry, "attack_rows": 1}, "objectives.unigame"))
    whole = plan_from(objective.rows())
    both = {r.term: r for r in whole.aside}
    inputs = {}
    for term, row in {
        REDRAW: GenerateRow("again", photograph(), photograph()),
        ATTACK: UnderstandRow([photograph()], [("what color is the square at the left edge ?", "red")]),
    }.items():
        inputs[term] = model.processor.collate(whole.alone(both[term]), both[term].pass_name, [row], [0], ["k"])
    start = unnormalized(model, model.as_source(inputs[REDRAW].targets)[0])
    assert place(start)[2] > 0.08
    assert place(start) == same_place(unnormalized(model, inputs[ATTACK].images[0, 0]))
