"""Answers a question from its words and the objects a sample lists: independent of the code that asked it."""

from __future__ import annotations

import re
from typing import Any

NUMBERS = ["zero", "one", "two", "three", "four"]


def answer(question: str, objects: list[dict[str, Any]]) -> str:
    by_color = {thing["color"]: thing for thing in objects}
    shapes = [thing["shape"] for thing in objects]
    if found := re.fullmatch(r"is there a (\w+) (\w+) \?", question):
        return _said((found[1], found[2]) in [(thing["color"], thing["shape"]) for thing in objects])
    if found := re.fullmatch(r"what color is the (leftmost|rightmost|nearest|farthest) object \?", question):
        value = "x" if found[1] in ("leftmost", "rightmost") else "depth"
        pick = min if found[1] in ("leftmost", "nearest") else max
        return pick(objects, key=lambda thing: thing[value])["color"]
    if found := re.fullmatch(r"what color are the objects , (leftmost|rightmost|nearest|farthest) first \?", question):
        value = "x" if found[1] in ("leftmost", "rightmost") else "depth"
        backwards = found[1] in ("rightmost", "farthest")
        return " ".join(thing["color"] for thing in sorted(objects, key=lambda thing: thing[value], reverse=backwards))
    if found := re.fullmatch(r"what color is the (\w+) \?", question):
        assert shapes.count(found[1]) == 1
        return objects[shapes.index(found[1])]["color"]
    if found := re.fullmatch(r"what shape is the (\w+) object \?", question):
        return by_color[found[1]]["shape"]
    if question == "how many objects are there ?":
        return NUMBERS[len(objects)]
    if found := re.fullmatch(r"how many (\w+)s are there \?", question):
        return NUMBERS[shapes.count(found[1])]
    if found := re.fullmatch(r"are there more (\w+)s than (\w+)s \?", question):
        assert shapes.count(found[1]) != shapes.count(found[2])
        return _said(shapes.count(found[1]) > shapes.count(found[2]))
    found = re.fullmatch(r"is the (\w+) object ([\w ]+) the (\w+) object \?", question)
    assert found, question
    first, second = by_color[found[1]], by_color[found[3]]
    difference = {
        "left of": second["x"] - first["x"],
        "right of": first["x"] - second["x"],
        "nearer than": second["depth"] - first["depth"],
        "farther than": first["depth"] - second["depth"],
        "larger than": first["radius"] - second["radius"],
    }[found[2]]
    assert abs(difference) > 0.01
    return _said(difference > 0)


def _said(truth: bool) -> str:
    return "yes" if truth else "no"
