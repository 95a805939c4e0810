"""Words about a scene: caption, dense description, and fair questions.

A question must not betray its answer. So what is asked does not depend on the answer: yes/no questions draw the answer
first, and the kinds to ask (`SLOTS`) are drawn before looking at the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .questions import (
    Color,
    CompareCounts,
    CompareSizes,
    CountAll,
    CountShape,
    Exist,
    Extremum,
    Order,
    Question,
    Relation,
    Shape,
)
from .sampling import HELD_OUT, SEEN_PAIRS, Pair, shape_choices
from .solids import SHAPES
from .world import COLORS, Scene, Thing

T = TypeVar("T")

QUESTIONS_PER_SCENE = 6
DESCRIBE = "describe the image ."
SIDE_WORDS = ("left of", "right of")
DEPTH_WORDS = ("nearer than", "farther than")
SLOTS = (
    *("exist", "exist", "shape", "color", "count_all", "count_shape"),
    *("leftmost", "rightmost", "nearest", "farthest"),
    *("side_relation", "depth_relation", "compare_counts", "compare_sizes"),
)


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """Every object once, as a chain: "a red cube left of a blue sphere", or read from the right with "right of"."""
    names = [f"a {thing.color} {thing.shape}" for thing in scene.things]
    if rng.random() < 0.5:
        return " left of ".join(names)
    return " right of ".join(reversed(names))


def description(scene: Scene) -> str:
    """All objects from left to right with size, color and shape: "large red cube , small blue sphere ."."""
    return " , ".join(f"{thing.size} {thing.color} {thing.shape}" for thing in scene.things) + " ."


def draw_questions(rng: np.random.Generator, scene: Scene, theme: str, allowed: frozenset[Pair] = SEEN_PAIRS) -> list[Question]:
    """At most QUESTIONS_PER_SCENE different questions with a clear answer, in random order. `theme` is the shape
    whose number is balanced (see sampling); only pairs out of `allowed` are ever named."""
    fair = _Asker(rng, scene, theme, allowed)
    slots = rng.permutation(len(SLOTS))[:QUESTIONS_PER_SCENE]
    drawn = [fair.ask(SLOTS[slot]) for slot in slots]
    # Slots the scene has no question for go to the kinds whose odds are the same in every scene.
    drawn += [fair.ask(kind) for kind in rng.permutation(["exist", "shape"] * len(scene.things)).tolist()]
    unique = list(dict.fromkeys(question for question in drawn if question is not None))[:QUESTIONS_PER_SCENE]
    return [unique[k] for k in rng.permutation(len(unique))]


def draw_orders(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """All questions about the order of the objects that have a clear answer, in random order."""
    questions = [Order(first) for first in ("leftmost", "rightmost", "nearest", "farthest")]
    clear = [question for question in questions if question.answer(scene) is not None]
    return [clear[k] for k in rng.permutation(len(clear)).tolist()]


class _Asker:
    """Draws questions about one scene; `exist` and `shape` go to each object at most once."""

    def __init__(self, rng: np.random.Generator, scene: Scene, theme: str, allowed: frozenset[Pair]):
        self.rng, self.scene, self.theme, self.allowed = rng, scene, theme, allowed
        self._to_seek = self._shuffled(scene.things)
        self._to_name = self._shuffled(scene.things)

    def ask(self, slot: str) -> Question | None:
        """A question with an answer, or None when the scene has none for this slot."""
        question = self._draw(slot)
        return question if question is not None and question.answer(self.scene) is not None else None

    def _draw(self, slot: str) -> Question | None:
        match slot:
            case "exist":
                return self._exist(self._to_seek.pop()) if self._to_seek else None
            case "shape":
                return self._shape(self._to_name.pop()) if self._to_name else None
            case "color":
                return self._color()
            case "count_all":
                return CountAll()
            case "count_shape":
                return CountShape(self.theme)
            case "side_relation":
                return self._about_two(SIDE_WORDS)
            case "depth_relation":
                return self._about_two(DEPTH_WORDS)
            case "compare_sizes":
                return self._about_two(())
            case "compare_counts":
                first, second = self._shuffled(SHAPES)[:2]
                return CompareCounts(first, second)
            case extremum:
                return Extremum(extremum)

    def _exist(self, thing: Thing) -> Exist:
        """Yes and no equally often; a no is the object's color with a wrong shape, or its shape in a wrong color."""
        if self.rng.random() < 0.5:
            return Exist(thing.color, thing.shape)
        if self.rng.random() < 0.5:
            wrong = [(thing.color, shape) for shape in SHAPES]
        else:
            wrong = [(color, thing.shape) for color in COLORS]
        present = {(t.color, t.shape) for t in self.scene.things}
        wrong = [pair for pair in wrong if pair in self.allowed and pair not in present]
        # Where held-out pairs may be named, more of them are present than of others: balance that with more absent ones.
        return Exist(*self._one([pair for pair in wrong if pair in HELD_OUT] or wrong))

    def _shape(self, thing: Thing) -> Shape | None:
        # A shape with fewer colors to choose from has each more often: ask less, so that shapes are uniform for every color.
        commonness = [sum(1 / shape_choices(c, self.allowed) for c, s in self.allowed if s == shape) for shape in SHAPES]
        keep = commonness[SHAPES.index(thing.shape)] / max(commonness)
        return Shape(thing.color) if self.rng.random() < keep else None

    def _color(self) -> Color | None:
        thing = self._one(self.scene.things)
        # A color with fewer shapes to choose from has each more often: ask less, so that colors are uniform for every shape.
        keep = shape_choices(thing.color, self.allowed) / len(SHAPES)
        return Color(thing.shape) if self.rng.random() < keep else None

    def _about_two(self, words: tuple[str, ...]) -> Relation | CompareSizes | None:
        """Two objects in random order, so that yes and no are equally likely."""
        if len(self.scene.things) < 2:
            return None
        first, second = self._shuffled(self.scene.things)[:2]
        if not words:
            return CompareSizes(first.color, second.color)
        return Relation(self._one(words), first.color, second.color)

    def _shuffled(self, items: Sequence[T]) -> list[T]:
        return [items[k] for k in self.rng.permutation(len(items))]

    def _one(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]
