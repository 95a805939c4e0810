"""Rows put into a pass from outside, rows taken out of one, and the plan of an attack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megaunigame.errors import ConfigError
from megaunigame.step.inputs import IGNORE, GenerateInputs, PassInputs, UnderstandInputs, of_kind, put_rows, take_rows
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from tests.passes import pass_inputs

PAD = 7
SIDE, VISUAL, WIDTH = 2, 3, 4
OPTIONAL = ("segments", "visual_delta")


def rows(lengths: list[int], width: int, *, places: int = 1, seed: int = 0, segments: bool = False, delta: bool = False):
    """Understand inputs padded to `width`; a length of 0 is a dummy row: one pad token, no image, no loss."""
    generator = torch.Generator().manual_seed(seed)
    count = len(lengths)
    used = torch.tensor([max(n, 1) for n in lengths])[:, None] > torch.arange(width)
    real = torch.tensor(lengths) > 0
    tokens = torch.where(used & real[:, None], torch.randint(10, 99, (count, width), generator=generator), PAD)
    labels = torch.where(used & real[:, None] & (torch.arange(width) > 0), tokens, IGNORE)
    intact = torch.rand(count, generator=generator) < 0.5
    intact[:2] = torch.tensor([seed == 0, seed > 0])[:count]
    return pass_inputs(
        UnderstandInputs,
        tokens,
        used,
        terms=torch.arange(count) + 10 * seed,
        labels=labels,
        front_padding=False,
        lengths=[max(n, 1) for n in lengths],
        segments=torch.randint(0, 3, (count, width), generator=generator) * used if segments else None,
        images=torch.randn(count, places, 3, SIDE, SIDE, generator=generator) * real[:, None, None, None, None],
        image_valid=real[:, None] & (torch.arange(places) == 0),
        image_positions=used & real[:, None] & (torch.arange(width) == 1),
        visual_delta=torch.randn(count, places, VISUAL, WIDTH, generator=generator) if delta else None,
        intact=intact,
        keys=[f"{seed}-{n}" for n in range(count)],
    )


def tensors(inputs: PassInputs) -> dict[str, Tensor]:
    return {f.name: v for f in dataclasses.fields(inputs) if isinstance(v := getattr(inputs, f.name), Tensor)}


def narrowed(inputs: PassInputs, width: int, places: int) -> dict[str, Tensor]:
    """The tensors cut to a sequence length and a number of images."""
    cut = {}
    for name, value in tensors(inputs).items():
        if name in ("images", "image_valid", "visual_delta"):
            value = value[:, :places]
        elif name == "label_positions":
            continue  # as long as there are labels, not as there are tokens
        elif value.dim() > 1:
            value = value[:, :width]
        cut[name] = value
    return cut


CASES = {
    "same sizes": (dict(width=8), dict(width=8)),
    "new rows are longer": (dict(width=8), dict(width=16)),
    "new rows are shorter": (dict(width=16), dict(width=8)),
    "new rows have more images": (dict(width=8), dict(width=8, places=3)),
    "new rows have fewer images": (dict(width=8, places=3), dict(width=8)),
    "segments in both": (dict(width=8, segments=True), dict(width=16, segments=True)),
    "segments in the new": (dict(width=8), dict(width=8, segments=True)),
    "segments in the old": (dict(width=16, segments=True), dict(width=8)),
    "perturbed new rows": (dict(width=8), dict(width=8, delta=True)),
    "perturbed old rows": (dict(width=8, delta=True), dict(width=8, delta=True)),
    "perturbed, more images": (dict(width=8, delta=True), dict(width=16, places=2, delta=True)),
}


@pytest.mark.parametrize(("old", "new"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("at", [slice(0, 2), slice(1, 3), slice(2, 4)], ids=["first", "middle", "last"])
def test_put_rows_changes_the_places_and_nothing_else(old, new, at):
    lengths = [5, 8, 3, 7]
    lengths[at] = [0, 0]
    inputs, part = rows(lengths, **old), rows([6, 4], seed=1, **new)
    before = {name: value.clone() for name, value in tensors(inputs).items()}
    found = put_rows(inputs, at, part)

    others = [i for i in range(4) if i not in range(at.start, at.stop)]
    width, places = max(old["width"], new["width"]), max(old.get("places", 1), new.get("places", 1))
    assert found.tokens.shape == (4, width) and found.images.shape[1] == places
    # What was there is still there, what was put is there, wherever both had room.
    for source, index in ((inputs, others), (part, list(range(at.start, at.stop)))):
        size, image_places = source.tokens.shape[1], source.images.shape[1]
        inside, wanted = narrowed(found, size, image_places), narrowed(source, size, image_places)
        rows_of = index if source is inputs else [0, 1]
        for name in wanted:
            if name != "terms":
                torch.testing.assert_close(inside[name][index], wanted[name][rows_of], rtol=0, atol=0, msg=name)
        # What was added is empty.
        assert (found.tokens[index][:, size:] == PAD).all() and (found.labels[index][:, size:] == IGNORE).all()
        for name in ("attention", "image_positions", *(["segments"] if found.segments is not None else [])):
            assert not getattr(found, name)[index][:, size:].any(), name
        assert not found.image_valid[index][:, image_places:].any()
    assert torch.equal(found.label_positions, label_positions(found.labels)) and not found.front_padding
    assert torch.equal(found.terms, inputs.terms), "a row serves the loss term of its place"
    assert found.lengths == found.attention.sum(1).tolist()
    assert found.keys == [*inputs.keys[: at.start], *part.keys, *inputs.keys[at.stop :]]
    # Absent stays absent only where neither has it.
    for name in OPTIONAL:
        assert (getattr(found, name) is None) == (getattr(inputs, name) is None and getattr(part, name) is None)
    if inputs.segments is None and found.segments is not None:
        assert not found.segments[others].any()
    if inputs.visual_delta is None and found.visual_delta is not None:
        assert not found.visual_delta[others].any()
    for name, value in tensors(inputs).items():
        assert torch.equal(value, before[name]), f"{name} of the given inputs was changed"


def test_a_row_put_without_a_perturbation_gets_none_and_the_others_keep_theirs():
    inputs, part = rows([0, 5], 8, delta=True), rows([4], 8, seed=1)
    found = put_rows(inputs, slice(0, 1), part)
    assert torch.equal(found.visual_delta[1], inputs.visual_delta[1]) and not found.visual_delta[0].any()


@pytest.mark.parametrize("name", ["images", "visual_delta"])
def test_the_gradient_into_the_put_rows_is_kept(name):
    part = rows([4, 6], 16, seed=1, delta=True)
    source = getattr(part, name).clone().requires_grad_()
    found = getattr(put_rows(rows([0, 0, 5], 8), slice(0, 2), dataclasses.replace(part, **{name: source})), name)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    (found * weight).sum().backward()
    torch.testing.assert_close(source.grad, weight[:2])


def test_rows_whose_pictures_carry_a_gradient_are_known():
    inputs, part = rows([0, 0, 5, 0], 8), rows([4], 8, seed=1)
    carrying = dataclasses.replace(part, images=part.images.clone().requires_grad_())
    assert put_rows(inputs, slice(1, 2), part).gradient_rows is None
    once = put_rows(inputs, slice(1, 2), carrying)
    assert once.gradient_rows == slice(1, 2)
    assert put_rows(once, slice(0, 1), part).gradient_rows == slice(1, 2)
    assert put_rows(once, slice(3, 4), carrying).gradient_rows == slice(1, 4)
    assert put_rows(dataclasses.replace(once, gradient_rows=None), slice(3, 4), carrying).gradient_rows is None
    assert take_rows(once, slice(1, 3)).gradient_rows is None


def test_padding_in_front_of_one_part_is_padding_in_front():
    inputs, part = rows([0, 5], 8), rows([4], 8, seed=1)
    assert put_rows(inputs, slice(0, 1), dataclasses.replace(part, front_padding=True)).front_padding
    assert put_rows(dataclasses.replace(inputs, front_padding=True), slice(0, 1), part).front_padding


def test_lengths_are_known_if_those_of_both_are():
    inputs, part = rows([0, 5], 8), rows([4], 8, seed=1)
    for a, b in ((inputs, dataclasses.replace(part, lengths=[])), (dataclasses.replace(inputs, lengths=[]), part)):
        assert put_rows(a, slice(0, 1), b).lengths == []
    assert take_rows(put_rows(inputs, slice(0, 1), part), slice(1, 2)).lengths == [5]


def test_dtypes_follow_the_pass():
    """Replayed pictures are float32; a pass that already runs in another precision keeps it."""
    inputs = rows([0, 5], 8)
    inputs.images = inputs.images.bfloat16()
    found = put_rows(inputs, slice(0, 1), rows([4], 8, seed=1))
    assert found.images.dtype == torch.bfloat16 and found.tokens.dtype == torch.int64 and found.attention.dtype == torch.bool


@pytest.mark.parametrize("settings", [{}, {"segments": True, "delta": True, "places": 2}], ids=["plain", "everything"])
def test_take_rows_takes_every_field(settings):
    inputs = rows([5, 8, 3], 8, **settings)
    taken = take_rows(inputs, slice(1, 3))
    assert tensors(taken).keys() == tensors(inputs).keys()
    for name, value in tensors(inputs).items():
        assert torch.equal(getattr(taken, name), value[1:3]), name
    assert taken.keys == inputs.keys[1:]


def test_what_is_taken_can_be_put_back():
    inputs = rows([5, 8, 3], 8, segments=True, delta=True, places=2)
    found = put_rows(inputs, slice(1, 2), take_rows(inputs, slice(1, 2)))
    for name, value in tensors(inputs).items():
        assert torch.equal(getattr(found, name), value), name
    assert found.keys == inputs.keys


# Plans


def test_rows_aside_are_not_rows_of_the_learner():
    redraw = RowRequest("redraw", GENERATE, "s", 3, takes_source=True, aside=True)
    plan = plan_from([RowRequest("clean", UNDERSTAND, "s", 2), redraw])
    assert plan.passes == (UNDERSTAND,) and plan.rows_per_micro_step() == 2 and plan.aside == (redraw,)
    assert plan.terms == ("clean",) and plan.rows(GENERATE) == 0 and plan.streams == ["s"]
    with pytest.raises(ConfigError, match="No objective asks for rows"):
        plan_from([redraw])


@pytest.mark.parametrize("takes_source", [True, False])
def test_rows_aside_are_put_together_as_a_pass_without_others(takes_source):
    redraw = RowRequest("redraw", GENERATE, "s", 3, takes_source=takes_source, aside=True)
    plan = plan_from([RowRequest("pixel", GENERATE, "s", 2, takes_source=not takes_source), redraw])
    alone = plan.alone(redraw)
    assert alone.terms == ("redraw",) and alone.rows(GENERATE) == 3 and alone.takes_images(GENERATE) == takes_source


def test_rows_at_are_where_a_term_lies_in_its_pass():
    plan = plan_from(
        [
            RowRequest("clean", UNDERSTAND, "s", 2),
            RowRequest("draw", GENERATE, "s", 4),
            RowRequest("none", UNDERSTAND, None, 0),
            RowRequest("hard", UNDERSTAND, None, 3),
            RowRequest("redraw", GENERATE, "s", 5, aside=True),
        ]
    )
    assert plan.rows_at(UNDERSTAND, "clean") == slice(0, 2) and plan.rows_at(UNDERSTAND, "hard") == slice(2, 5)
    assert plan.rows_at(GENERATE, "draw") == slice(0, 4)
    for pass_name, term in ((GENERATE, "hard"), (UNDERSTAND, "none"), (GENERATE, "redraw")):
        with pytest.raises(KeyError, match=term):
            plan.rows_at(pass_name, term)


def test_rows_of_the_other_pass_are_refused_where_they_are_expected():
    inputs = rows([3], width=4)
    assert of_kind(UnderstandInputs, inputs) is inputs
    with pytest.raises(TypeError, match="Expected rows of the generate pass, got UnderstandInputs"):
        of_kind(GenerateInputs, inputs)


def test_every_tensor_goes_to_the_device_and_nothing_else_changes():
    inputs = rows([3, 2], width=4, segments=True, delta=True)
    moved = inputs.to(torch.device("meta"))
    assert {value.device.type for value in tensors(moved).values()} == {"meta"} and set(tensors(moved)) == set(tensors(inputs))
    assert moved.keys == inputs.keys and inputs.tokens.device.type == "cpu"
