"""Scene i of a split, a pure function of (seed, split, i).

- train, val: seen color-shape pairs, the look of training.
- ood: cycles through a held-out pair, an unseen look, and both (`ood` in the sample says which). Its forced pairs make some
  answers more likely than others ("the red object" is often a cylinder): a prior that only ood answers could teach.
- adversarial: samples 2k and 2k + 1 are one scene with one change, and one question with different answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from .language import (
    DEPTH_WORDS,
    DESCRIBE,
    SIDE_WORDS,
    caption,
    description,
    draw_orders,
    draw_questions,
)
from .questions import (
    Color,
    CompareCounts,
    CountAll,
    CountShape,
    Exist,
    Extremum,
    Question,
    Relation,
    Shape,
)
from .sampling import (
    ALL_PAIRS,
    HELD_OUT,
    SEEN_PAIRS,
    draw_attributes,
    draw_look,
    draw_scene,
    draw_unseen_look,
    from_left_to_right,
    is_clear,
)
from .solids import SHAPES
from .world import COLORS, Scene, Thing

SPLITS = ("train", "val", "ood", "adversarial")
OOD_FACTORS = (("pair",), ("look",), ("pair", "look"))
MIXED, ORDER = QUESTIONS = ("mixed", "order")
"""`mixed`: up to six of all kinds but `order`, and a description; `order`: of that kind alone."""
WITH_ORDER = ("train", "val")


@dataclass(frozen=True)
class Example:
    """A scene with its texts. `turns` are (kind, question, answer); `extra` goes into the sample's json."""

    scene: Scene
    caption: str
    turns: tuple[tuple[str, str, str], ...]
    extra: dict[str, object]


def example(seed: int, split: str, index: int, questions: str = MIXED) -> Example:
    """Sample `index` of a split. `questions` is one of QUESTIONS; ORDER, for train and val, gives another scene, of two objects
    or more, with questions about their order and no others."""
    if split == "adversarial":
        return _adversarial_pair(seed, index // 2)[index % 2]
    rng = _generator(seed, split, index)
    if split == "ood":
        return _out_of_distribution(rng, OOD_FACTORS[index % len(OOD_FACTORS)])
    attributes = draw_attributes(rng)
    while questions == ORDER and len(attributes.pairs) < 2:
        attributes = draw_attributes(rng)
    scene = draw_scene(rng, attributes, draw_look(rng))
    if questions == ORDER:
        return Example(scene, caption(rng, scene), tuple(_turns(draw_orders(rng, scene), scene)), {})
    return _told(rng, scene, draw_questions(rng, scene, attributes.theme), {})


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index])


def _told(rng: np.random.Generator, scene: Scene, questions: list[Question], extra: dict[str, object]) -> Example:
    turns = _turns(questions, scene)
    # Last: its answer gives away all others.
    turns.append(("description", DESCRIBE, description(scene)))
    return Example(scene, caption(rng, scene), tuple(turns), extra)


def _turns(questions: Iterable[Question], scene: Scene) -> list[tuple[str, str, str]]:
    return [(question.kind, question.text, str(question.answer(scene))) for question in questions]


def _out_of_distribution(rng: np.random.Generator, factors: tuple[str, ...]) -> Example:
    required = HELD_OUT[rng.integers(len(HELD_OUT))] if "pair" in factors else None
    attributes = draw_attributes(rng, ALL_PAIRS if "pair" in factors else SEEN_PAIRS, required)
    look = draw_unseen_look(rng) if "look" in factors else draw_look(rng)
    scene = draw_scene(rng, attributes, look)
    return _told(rng, scene, draw_questions(rng, scene, attributes.theme, ALL_PAIRS), {"ood": list(factors)})


@lru_cache(maxsize=1)  # both of a pair are requested, one after the other
def _adversarial_pair(seed: int, pair: int) -> tuple[Example, Example]:
    """Two scenes that differ in one change, in random order, with one question that they answer differently."""
    rng = _generator(seed, "adversarial", pair)
    change = tuple(_CHANGES)[rng.integers(len(_CHANGES))]
    while True:
        scene = draw_scene(rng, draw_attributes(rng), draw_look(rng))
        things = _CHANGES[change](rng, list(scene.things))
        if things is None:
            continue
        changed = dataclasses.replace(scene, things=from_left_to_right(things, scene.camera))
        telling = [q for q in _questions_on(change) if _tells_apart(q, scene, changed)]
        if telling and is_clear(changed):
            break
    kinds = sorted({question.kind for question in telling})
    kind = kinds[rng.integers(len(kinds))]
    telling = [question for question in telling if question.kind == kind]
    question = telling[rng.integers(len(telling))]
    words = int(rng.integers(2**31))
    scenes = (scene, changed) if rng.random() < 0.5 else (changed, scene)
    first, second = (
        Example(
            scene=each,
            caption=caption(np.random.default_rng(words), each),
            turns=((question.kind, question.text, str(question.answer(each))),),
            extra={"pair": pair, "changed": change},
        )
        for each in scenes
    )
    return first, second


def _tells_apart(question: Question, scene: Scene, other: Scene) -> bool:
    answers = question.answer(scene), question.answer(other)
    return None not in answers and answers[0] != answers[1]


def _questions_on(change: str) -> Iterable[Question]:
    """Every question whose answer such a change can flip."""
    color_pairs = list(permutations(COLORS, 2))
    if change in ("side", "depth"):
        ends, words = (("leftmost", "rightmost"), SIDE_WORDS) if change == "side" else (("nearest", "farthest"), DEPTH_WORDS)
        yield from (Extremum(kind) for kind in ends)
        yield from (Relation(word, *colors) for word, colors in product(words, color_pairs))
        return
    yield from (Exist(*pair) for pair in sorted(SEEN_PAIRS))
    if change == "color":
        yield from (Color(shape) for shape in SHAPES)
    if change == "shape":
        yield from (Shape(color) for color in COLORS)
    if change == "count":
        yield CountAll()
    if change in ("shape", "count"):
        yield from (CountShape(shape) for shape in SHAPES)
        yield from (CompareCounts(*shapes) for shapes in permutations(SHAPES, 2))


def _recolored(rng: np.random.Generator, things: list[Thing]) -> list[Thing] | None:
    k = int(rng.integers(len(things)))
    taken = {thing.color for thing in things}
    free = [color for color in COLORS if color not in taken and (color, things[k].shape) in SEEN_PAIRS]
    if not free:
        return None
    color = free[rng.integers(len(free))]
    things[k] = dataclasses.replace(things[k], color=color, albedo=COLORS[color])
    return things


def _reshaped(rng: np.random.Generator, things: list[Thing]) -> list[Thing] | None:
    k = int(rng.integers(len(things)))
    shapes = [shape for shape in SHAPES if shape != things[k].shape and (things[k].color, shape) in SEEN_PAIRS]
    things[k] = dataclasses.replace(things[k], shape=shapes[rng.integers(len(shapes))])
    return things


def _fewer(rng: np.random.Generator, things: list[Thing]) -> list[Thing] | None:
    if len(things) < 2:
        return None
    del things[int(rng.integers(len(things)))]
    # Ids have no gaps: a gap would reveal the changed scene.
    ranks = sorted(thing.mask_id for thing in things)
    return [dataclasses.replace(thing, mask_id=ranks.index(thing.mask_id) + 1) for thing in things]


def _exchanged(axis: str) -> Callable[[np.random.Generator, list[Thing]], list[Thing] | None]:
    """Two objects exchange their places along one axis."""

    def change(rng: np.random.Generator, things: list[Thing]) -> list[Thing] | None:
        if len(things) < 2:
            return None
        a, b = rng.permutation(len(things))[:2].tolist()
        here, there = getattr(things[a], axis), getattr(things[b], axis)
        things[a] = dataclasses.replace(things[a], **{axis: there})
        things[b] = dataclasses.replace(things[b], **{axis: here})
        return things

    return change


_CHANGES: dict[str, Callable[[np.random.Generator, list[Thing]], list[Thing] | None]] = {
    "color": _recolored,
    "shape": _reshaped,
    "count": _fewer,
    "side": _exchanged("x"),
    "depth": _exchanged("z"),
}
