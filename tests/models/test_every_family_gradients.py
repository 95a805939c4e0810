"""What is trained gets a gradient and nothing else does, in every family and for every choice of groups."""

from __future__ import annotations

import pytest

from megaunigame.config import LoraConfig, ModelConfig
from megaunigame.engine.parameters import choose_trainable
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import PLAN, TURNS, generate, understand

DEFAULT, EVERY, SINGLE, ADAPTERS = "default groups", "every group", "one group at a time", "adapters"


def choices(family, choice) -> list[ModelConfig]:
    """Settings of the block `model`."""
    if choice == ADAPTERS:
        return [ModelConfig(train="lora", lora=LoraConfig(rank=2, dropout=0.0))]
    groups = {DEFAULT: [[]], EVERY: [list(family.groups)], SINGLE: [[group] for group in family.groups]}
    return [ModelConfig(train="full", groups=chosen) for chosen in groups[choice]]


@pytest.mark.parametrize("choice", [DEFAULT, EVERY, SINGLE, ADAPTERS])
def test_gradients_are_exactly_those_of_what_is_trained(tiny, picture, choice):
    for config in choices(tiny.family, choice):
        model = tiny.load()
        choose_trainable(model, config, PLAN, seed=0)
        chosen = set(config.groups or model.trained_by_default)
        wanted = {n for n, p in model.named_parameters() if p.requires_grad}
        if config.train == "lora":
            assert wanted == {n for n, _ in model.named_parameters() if "lora_" in n}
        else:
            assert wanted == {n for n, _ in model.named_parameters() if model.group_of(n) in chosen}
        asked = model(understand(model, UnderstandRow([picture(0)], TURNS), UnderstandRow([], TURNS)))
        drawn = model(generate(model, GenerateRow("a cube", picture(1)), GenerateRow("its depth", picture(0), picture(2))))
        (asked.loss_sum.sum() + drawn.loss_sum.sum()).backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == wanted
        moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        # The second matrix of an adapter begins at zero, and hides the first. A softmax does not see a bias of keys.
        assert {n for n in wanted - moved if "lora_A" not in n and not n.endswith("k_proj.bias")} == set(), choice
        assert all(p.grad is None for p in model.frozen.module.parameters())


def test_a_pass_reaches_the_groups_that_it_names_and_no_others(tiny, picture):
    """`groups_of_pass` decides what is frozen where a recipe has no rows of a pass, `unreached` what does not decay."""
    for name, takes_images in ((UNDERSTAND, False), (UNDERSTAND, True), (GENERATE, False), (GENERATE, True)):
        model = tiny.load()
        if name == UNDERSTAND:
            output = model(understand(model, UnderstandRow([picture(0)] if takes_images else [], TURNS)))
        else:
            output = model(generate(model, GenerateRow("a cube", picture(1), picture(0) if takes_images else None)))
        output.loss_sum.sum().backward()
        reached = {model.group_of(n) for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert reached == set(model.groups_of_pass(name, takes_images)), (name, takes_images)
        of_groups = {n: p for n, p in model.named_parameters() if model.group_of(n) in reached}
        still = {n for n, p in of_groups.items() if p.grad is None or p.grad.abs().max() == 0}
        assert still == {n for n in of_groups if n.startswith(model.unreached(name))}, (name, takes_images)


def test_a_longer_neighbor_does_not_change_an_understand_row(model, picture):
    """Nor does the number of pictures of the neighbor."""
    short = UnderstandRow([picture(0)], TURNS[:1])
    others = UnderstandRow([], TURNS), UnderstandRow([picture(1), picture(2)], TURNS)
    alone, together = (model(understand(model, short, *more)).loss_sum[0].item() for more in ((), others))
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-4)
