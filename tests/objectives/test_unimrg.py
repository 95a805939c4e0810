"""UniMRG: which rows a task asks for, what a sample gives it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError, DataError
from megaunigame.objectives.unimrg import UniMRG
from megaunigame.objectives.unimrg.condition import soften
from megaunigame.objectives.unimrg.prompts import DESCRIBED, PAPER
from megaunigame.objectives.unimrg.settings import Settings
from megaunigame.settings import fill
from megaunigame.step.codes import PictureCodes
from megaunigame.step.requests import GENERATE, UNDERSTAND, plan_from
from megaunigame.step.rotation import Rotation

IMAGE = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)
DEPTH = torch.arange(64, dtype=torch.int32).reshape(8, 8) * 1000
IDS = torch.tensor([[0] * 8] * 2 + [[0, 0, 1, 1, 1, 1, 0, 0]] * 4 + [[2] * 8] * 2, dtype=torch.uint8)
CODES = PictureCodes("ab", 48, {("squash", 16): torch.zeros(1, 4, 4, dtype=torch.long)})
TALK = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]


def unimrg(**settings) -> UniMRG:
    return UniMRG(fill(Settings, settings, "objectives.unimrg"))


def sample(**parts) -> Sample:
    given = {"image": IMAGE, "depth": DEPTH, "segmentation": IDS} | parts
    return Sample("k", {"conversations": TALK}, **given)


def rows_of(objective: UniMRG, task: str, count: int = 1, given: Sample | None = None) -> list:
    request = next(r for r in objective.rows() if r.term == task)
    return [objective.row(request, given or sample(), np.random.default_rng(seed)) for seed in range(count)]


def test_the_released_tasks_share_two_passes():
    objective = unimrg()
    plan = plan_from(objective.rows())
    assert plan.passes == (GENERATE, UNDERSTAND) and plan.rows(GENERATE) == 12 and plan.rows(UNDERSTAND) == 4
    assert all(r.weight == 1 for r in plan.requests) and plan.takes_images(GENERATE)
    assert objective.rotation() is None
    assert unimrg(schedule="round_robin").rotation() == Rotation(
        ("understanding", "depth", "pixel", "segmentation"), "round_robin"
    )


def test_rows_of_the_four_tasks():
    objective = unimrg(drop=0.0, independent=True)
    assert rows_of(objective, "understanding")[0].turns == [("q", "a")]
    (pixel,) = rows_of(objective, "pixel")
    assert torch.equal(pixel.target, IMAGE) and torch.equal(pixel.source, IMAGE) and pixel.prompt in DESCRIBED["pixel"]
    (depth,) = rows_of(objective, "depth")
    assert depth.target[0, 0, 0] < depth.target[0, -1, -1] and torch.equal(depth.source, IMAGE)
    (regions,) = rows_of(objective, "segmentation")
    (contours,) = rows_of(unimrg(renderings={"segmentation": "contours"}), "segmentation")
    assert len(regions.target.flatten(1).unique(dim=1)[0]) == 3 and set(contours.target.unique().tolist()) == {0, 255}


def test_only_the_own_picture_of_a_sample_comes_with_its_codes():
    given = sample(codes=CODES)
    assert rows_of(unimrg(), "understanding", given=given)[0].codes is CODES
    (pixel,) = rows_of(unimrg(), "pixel", given=given)
    assert pixel.target_codes is pixel.source_codes is CODES
    for softer in ({"source_downscale": 2}, {"source_blur": 1.5}):
        (softened,) = rows_of(unimrg(**softer), "pixel", given=given)
        assert softened.target_codes is CODES and softened.source_codes is None
    drawn = unimrg(rows={"depth": 1, "segmentation": 1, "edges": 1})
    for task in ("depth", "segmentation", "edges"):
        (row,) = rows_of(drawn, task, given=given)
        assert row.target_codes is None and row.source_codes is CODES


def test_other_sets_of_tasks():
    assert plan_from(unimrg(rows={"pixel": 3}).rows()).passes == (GENERATE,)
    edges = unimrg(rows={"edges": 1, "understanding": 0})
    assert [r.term for r in edges.rows()] == ["edges"] and rows_of(edges, "edges")[0].target.shape == IMAGE.shape


def test_only_pixel_rows_lose_their_condition():
    objective = unimrg(drop=0.4)
    dropped = {task: np.mean([r.unconditional for r in rows_of(objective, task, 500)]) for task in ("pixel", "depth")}
    assert dropped["depth"] == 0 and abs(dropped["pixel"] - 0.4) < 0.08


def test_prompts():
    counts = {task: len(set(prompts)) for task, prompts in DESCRIBED.items()}
    assert (counts["pixel"], counts["depth"], counts["segmentation"]) == (360, 5, 15)
    drawn = {r.prompt for r in rows_of(unimrg(), "depth", 100)}
    assert drawn == set(DESCRIBED["depth"]), "every wording is drawn"
    assert rows_of(unimrg(prompts="paper"), "depth")[0].prompt == PAPER["depth"][0]
    assert rows_of(unimrg(own_prompts={"depth": ["d"]}), "depth")[0].prompt == "d"
    with pytest.raises(ConfigError, match=r"no prompt for the task 'edges'.*own_prompts.edges="):
        unimrg(prompts="paper", rows={"edges": 1})


def test_the_softened_source_keeps_the_large_and_loses_the_fine():
    stripes = (torch.arange(16) % 2 * 255).to(torch.uint8).expand(3, 16, 16).contiguous()
    for softened in (soften(stripes, 4, 0), soften(stripes, 1, 2.0)):
        assert softened.shape == stripes.shape and softened.float().std() < 40 < stripes.float().std()
        assert abs(softened.float().mean() - stripes.float().mean()) < 3
    assert soften(stripes, 1, 0) is stripes
    assert soften(stripes[:, :2, :3], 8, 5.0).shape == (3, 2, 3), "smaller than the kernel"
    (pixel,), (depth,) = (rows_of(unimrg(source_downscale=4, drop=0), task) for task in ("pixel", "depth"))
    assert not torch.equal(pixel.source, IMAGE) and torch.equal(pixel.target, IMAGE) and torch.equal(depth.source, IMAGE)
    for task in ("depth", "pixel"):
        assert rows_of(unimrg(source_gradient=0.1), task)[0].source_gradient == 0.1


def test_a_blur_reaches_three_standard_deviations():
    point = torch.zeros(3, 25, 25, dtype=torch.uint8)
    point[:, 12, 12] = 255
    weights = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / (2 * 2.0**2))
    weights = weights / weights.sum()
    expected = torch.zeros(25, 25)
    expected[6:19, 6:19] = 255 * weights[:, None] * weights
    assert (soften(point, 1, 2.0).float() - expected).abs().max() <= 0.51


def test_tasks_have_the_weights_of_the_recipe():
    found = {r.term: r.weight for r in unimrg(weights={"depth": 0.25, "understanding": 3.0}).rows()}
    assert found == {"understanding": 3.0, "depth": 0.25, "pixel": 1.0, "segmentation": 1.0}


def test_text_only_rows_are_dummies_and_missing_targets_are_bad_samples():
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    text_only = Sample("k", {"conversations": said})
    assert rows_of(unimrg(), "depth", given=text_only) == [None]
    assert rows_of(unimrg(), "understanding", given=text_only)[0].images == []
    with pytest.raises(DataError, match=r"Sample k has no depth.png.*megaunigame prepare annotate"):
        rows_of(unimrg(), "depth", given=sample(depth=None))
    with pytest.raises(ConfigError, match=r"no seg.png.*missing=substitute"):
        rows_of(unimrg(missing="error"), "segmentation", given=sample(segmentation=None))


def test_paired_tasks_look_at_the_same_samples():
    shares = {r.term: r.shares for r in unimrg(images="paired").rows()}
    assert shares == {"understanding": None, **dict.fromkeys(("depth", "pixel", "segmentation"), "understanding")}
    assert {r.shares for r in unimrg().rows()} == {None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": {"depht": 2}}, r"'depht'. Did you mean 'depth'"),
        ({"rows": {"depth": -1}}, r"objectives.unimrg.rows.depth must be at least 0; got -1"),
        ({"rows": {"depth": 0}}, r"gives no task a row"),
        ({"weights": {"dept": 1.0}}, r"Did you mean 'depth'"),
        ({"weights": {"depth": -1.0}}, r"objectives.unimrg.weights.depth must be at least 0; got -1"),
        ({"schedule": "roundrobin"}, r"Did you mean 'round_robin'"),
        ({"images": "same"}, r"Legal: independent, paired"),
        ({"prompts": "papers"}, r"Did you mean 'paper'"),
        ({"renderings": {"segmentation": "lines"}}, r"no rendering 'lines'. Legal: regions, contours"),
        ({"renderings": {"depth": "grey"}}, r"Legal: none, leave it out"),
        ({"drop": 1.0}, r"drop must lie in \[0, 1\)"),
        ({"source_downscale": 0.5}, r"objectives.unimrg.source_downscale must be at least 1; got 0.5"),
        ({"source_gradient": 2.0}, r"source_gradient must lie in \[0, 1\]"),
        ({"missing": "skip"}, r"Legal: substitute, error"),
        ({"images": "paired", "rows": {"understanding": 2, "depth": 1}}, r"paired needs the same number of rows"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        unimrg(**settings)


def test_objects_may_weigh_more():
    objective = unimrg(object_weight=4.0, rows={"depth": 1, "pixel": 1})
    (depth,), (pixel,) = rows_of(objective, "depth"), rows_of(objective, "pixel")
    mask, weight = depth.emphasis
    assert torch.equal(mask, IDS > 0) and weight == 4 and pixel.emphasis is None
    assert rows_of(unimrg(rows={"depth": 1}), "depth")[0].emphasis is None
    with pytest.raises(DataError, match="no seg.png, which depth rows need for object_weight=4.*annotate"):
        rows_of(objective, "depth", given=sample(segmentation=None))


def test_the_released_pairs_are_those_of_the_drawing_tasks():
    shares = {r.term: r.shares for r in unimrg(images="generation_paired").rows()}
    assert shares == {"understanding": None, "depth": None, "pixel": "depth", "segmentation": "depth"}
    with pytest.raises(ConfigError, match=r"generation_paired needs the same number of rows for depth, pixel; got"):
        unimrg(images="generation_paired", rows={"understanding": 9, "depth": 2, "pixel": 3})
    for images in ("generation_paired", "paired"):
        with pytest.raises(
            ConfigError, match=rf"images={images} .*in rotation each has its own. Type objectives.unimrg.schedule=all"
        ):
            unimrg(images=images, schedule="round_robin")
