"""The questions about a scene. Each has its text and computes its answer.

`answer(scene)` is None where the question has no clear answer (the object asked about is missing or not unique, or the
difference is within the margin).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

from .world import Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four")
DEPTH_MARGIN = 0.6
"""Least difference in depth, in world units, between two objects of which one is called nearer."""


class Question(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def text(self) -> str: ...

    def answer(self, scene: Scene) -> str | None: ...


@dataclass(frozen=True)
class Exist:
    color: str
    shape: str
    kind: ClassVar[str] = "exist"

    @property
    def text(self) -> str:
        return f"is there a {self.color} {self.shape} ?"

    def answer(self, scene: Scene) -> str | None:
        return _yes_no(any(t.color == self.color and t.shape == self.shape for t in scene.things))


@dataclass(frozen=True)
class Color:
    shape: str
    kind: ClassVar[str] = "color"

    @property
    def text(self) -> str:
        return f"what color is the {self.shape} ?"

    def answer(self, scene: Scene) -> str | None:
        colors = [t.color for t in scene.things if t.shape == self.shape]
        return colors[0] if len(colors) == 1 else None


@dataclass(frozen=True)
class Shape:
    color: str
    kind: ClassVar[str] = "shape"

    @property
    def text(self) -> str:
        return f"what shape is the {self.color} object ?"

    def answer(self, scene: Scene) -> str | None:
        thing = _colored(scene, self.color)
        return thing.shape if thing else None


@dataclass(frozen=True)
class CountAll:
    kind: ClassVar[str] = "count"
    text: ClassVar[str] = "how many objects are there ?"

    def answer(self, scene: Scene) -> str | None:
        return NUMBERS[len(scene.things)]


@dataclass(frozen=True)
class CountShape:
    shape: str
    kind: ClassVar[str] = "count"

    @property
    def text(self) -> str:
        return f"how many {self.shape}s are there ?"

    def answer(self, scene: Scene) -> str | None:
        return NUMBERS[_count(scene, self.shape)]


@dataclass(frozen=True)
class Extremum:
    """`kind` is leftmost, rightmost, nearest or farthest."""

    kind: str

    @property
    def text(self) -> str:
        return f"what color is the {self.kind} object ?"

    def answer(self, scene: Scene) -> str | None:
        if len(scene.things) < 2:
            return None
        # By construction objects are ordered from left to right with a margin; depth needs one.
        if self.kind == "leftmost":
            return scene.things[0].color
        if self.kind == "rightmost":
            return scene.things[-1].color
        by_depth = sorted(scene.things, key=lambda t: depth(scene, t), reverse=self.kind == "farthest")
        clear = abs(depth(scene, by_depth[0]) - depth(scene, by_depth[1])) >= DEPTH_MARGIN
        return by_depth[0].color if clear else None


@dataclass(frozen=True)
class Relation:
    """`words` is "left of", "right of", "nearer than" or "farther than"."""

    words: str
    color: str
    other_color: str
    kind: ClassVar[str] = "relation"

    @property
    def text(self) -> str:
        return f"is the {self.color} object {self.words} the {self.other_color} object ?"

    def answer(self, scene: Scene) -> str | None:
        thing, other = _colored(scene, self.color), _colored(scene, self.other_color)
        if thing is None or other is None:
            return None
        if self.words in ("left of", "right of"):
            is_left = scene.things.index(thing) < scene.things.index(other)
            return _yes_no(is_left == (self.words == "left of"))
        difference = depth(scene, other) - depth(scene, thing)
        if abs(difference) < DEPTH_MARGIN:
            return None
        return _yes_no((difference > 0) == (self.words == "nearer than"))


@dataclass(frozen=True)
class Order:
    """All objects by their place: the relation of every two of them in one answer. `first` is leftmost, rightmost, nearest or
    farthest."""

    first: str
    kind: ClassVar[str] = "order"

    @property
    def text(self) -> str:
        return f"what color are the objects , {self.first} first ?"

    def answer(self, scene: Scene) -> str | None:
        things = list(scene.things)
        if len(things) < 2:
            return None
        if self.first in ("nearest", "farthest"):
            things.sort(key=lambda thing: depth(scene, thing))
            depths = [depth(scene, thing) for thing in things]
            if min(far - near for near, far in pairwise(depths)) < DEPTH_MARGIN:
                return None
        if self.first in ("rightmost", "farthest"):
            things.reverse()
        return " ".join(thing.color for thing in things)


@dataclass(frozen=True)
class CompareCounts:
    shape: str
    other_shape: str
    kind: ClassVar[str] = "compare"

    @property
    def text(self) -> str:
        return f"are there more {self.shape}s than {self.other_shape}s ?"

    def answer(self, scene: Scene) -> str | None:
        count, other = _count(scene, self.shape), _count(scene, self.other_shape)
        return None if count == other else _yes_no(count > other)


@dataclass(frozen=True)
class CompareSizes:
    color: str
    other_color: str
    kind: ClassVar[str] = "compare"

    @property
    def text(self) -> str:
        return f"is the {self.color} object larger than the {self.other_color} object ?"

    def answer(self, scene: Scene) -> str | None:
        thing, other = _colored(scene, self.color), _colored(scene, self.other_color)
        if thing is None or other is None or thing.size == other.size:
            return None
        return _yes_no(thing.size == "large")


def depth(scene: Scene, thing: Thing) -> float:
    """Depth of the object's center along the camera's axis, in world units."""
    return scene.camera.project(thing.center)[2]


def _colored(scene: Scene, color: str) -> Thing | None:
    return next((thing for thing in scene.things if thing.color == color), None)


def _count(scene: Scene, shape: str) -> int:
    return sum(thing.shape == shape for thing in scene.things)


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"
