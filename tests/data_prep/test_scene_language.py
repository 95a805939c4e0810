"""Questions are true, unambiguous, and cannot be answered from their words alone."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_prep.scenes.questions import DEPTH_MARGIN
from data_prep.scenes.samples import _record
from data_prep.scenes.sampling import SEEN_PAIRS
from data_prep.scenes.solids import SHAPES
from data_prep.scenes.splits import SPLITS, example
from data_prep.scenes.world import COLORS
from data_prep.statistics import question_statistics
from tests.data_prep.scene_answers import answer

SCENES = 4000
CHANCE = {
    "exist": 1 / 2,
    "relation": 1 / 2,
    "compare": 1 / 2,
    "count": 1 / 4,
    "color": (3 / 5 + 1 / 6) / 4,  # three shapes come in five colors, cones in six
    "shape": (3 / 3 + 3 / 4) / 6,  # three colors come in three shapes, three in four
    "leftmost": 1 / 6,
    "rightmost": 1 / 6,
    "nearest": 1 / 6,
    "farthest": 1 / 6,
}


def records(split: str, count: int, questions: str = "mixed") -> list[dict[str, Any]]:
    """The json of samples, without rendering colors."""
    shown = (example(1, split, index, questions) for index in range(count))
    return [json.loads(json.dumps(_record(each, np.zeros(len(each.scene.things))))) for each in shown]


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return records("train", SCENES)


def turns(record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    spoken = [turn["value"] for turn in record["conversations"]]
    assert spoken[0].startswith("<image>\n")
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * len(record["kinds"])
    spoken[0] = spoken[0].removeprefix("<image>\n")
    yield from zip(record["kinds"], spoken[0::2], spoken[1::2], strict=True)


def test_no_answer_can_be_guessed_from_the_question(train: list[dict[str, Any]]):
    found = question_statistics(train)
    assert set(found) == {*CHANCE, "description"}
    for kind, chance in CHANCE.items():
        held = found[kind].asked / 2
        sampling = 2.5 * math.sqrt(chance * (1 - chance) / held)
        assert found[kind].majority < chance + 0.03 + sampling, kind
        assert found[kind].chance == pytest.approx(chance, abs=0.02), kind


def even_answers() -> dict[str, dict[str, float]]:
    """The share of every answer when, for each question text, all its legal answers are equally likely."""
    yes_no = {"yes": 1 / 2, "no": 1 / 2}
    colors_of = {shape: [c for c in COLORS if (c, shape) in SEEN_PAIRS] for shape in SHAPES}
    shapes_of = {color: [s for s in SHAPES if (color, s) in SEEN_PAIRS] for color in COLORS}
    return {
        **{kind: yes_no for kind in ("exist", "relation", "compare")},
        **{kind: {c: 1 / 6 for c in COLORS} for kind in ("leftmost", "rightmost", "nearest", "farthest")},
        "color": {c: sum(1 / len(of) for of in colors_of.values() if c in of) / 4 for c in COLORS},
        "shape": {s: sum(1 / len(of) for of in shapes_of.values() if s in of) / 6 for s in SHAPES},
    }


def test_answers_are_evenly_spread(train: list[dict[str, Any]]):
    found = question_statistics(train)
    for kind, shares in even_answers().items():
        assert set(found[kind].answers) == set(shares)
        for word, share in shares.items():
            assert found[kind].answers[word] / found[kind].asked == pytest.approx(share, abs=0.035), (kind, word)


@pytest.mark.parametrize("things", ["objects", "shapes"])
def test_all_four_counts_are_equally_frequent(things, train: list[dict[str, Any]]):
    asked = [(q, a) for record in train for kind, q, a in turns(record) if kind == "count"]
    counted = Counter(a for q, a in asked if (q == "how many objects are there ?") == (things == "objects"))
    assert set(counted) == {"one", "two", "three", "four" if things == "objects" else "zero"}
    for word, times in counted.items():
        assert times / counted.total() == pytest.approx(1 / 4, abs=0.03), word


def test_half_of_the_noes_differ_in_color_and_half_in_shape(train: list[dict[str, Any]]):
    wrong: Counter[str] = Counter()
    for record in train[:2000]:
        colors = {thing["color"] for thing in record["objects"]}
        shapes = {thing["shape"] for thing in record["objects"]}
        for kind, question, said in turns(record):
            if kind == "exist" and said == "no":
                color, shape = question.split()[3:5]
                assert color in colors or shape in shapes
                wrong["color only" if color not in colors else "shape only" if shape not in shapes else "both there"] += 1
    assert min(wrong["color only"], wrong["shape only"]) > 0.2 * wrong.total()


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_true(split, train: list[dict[str, Any]]):
    for record in train[:1000] if split == "train" else records(split, 300):
        asked = list(turns(record))
        assert len({question for _, question, _ in asked}) == len(asked)
        for kind, question, said in asked:
            if kind != "description":
                assert said == answer(question, record["objects"]), question
                assert re.fullmatch("[a-z]+", said)


def test_captions_and_descriptions_name_every_object_in_order(train: list[dict[str, Any]]):
    directions = Counter()
    for record in train[:500]:
        names = [f"{thing['color']} {thing['shape']}" for thing in record["objects"]]
        assert [thing["x"] for thing in record["objects"]] == sorted(thing["x"] for thing in record["objects"])
        said = re.findall(r"a (\w+ \w+)", record["caption"])
        direction = "right" if "right of" in record["caption"] else "left"
        assert said == (names if direction == "left" else names[::-1])
        assert len(record["caption"].split()) <= 24
        directions[direction] += len(names) > 1
        sized = " , ".join(f"{thing['size']} {name}" for thing, name in zip(record["objects"], names, strict=True)) + " ."
        assert list(turns(record))[-1] == ("description", "describe the image .", sized)
    assert 0.4 < directions["left"] / directions.total() < 0.6


def test_the_order_of_questions_is_shuffled_with_the_description_last(train: list[dict[str, Any]]):
    first = Counter(record["kinds"][0] for record in train)
    assert len(first) == len(CHANCE)
    assert all(record["kinds"].index("description") == len(record["kinds"]) - 1 for record in train)
    assert 5 < sum(len(record["kinds"]) - 1 for record in train) / len(train) <= 6


def test_questions_about_the_order_of_all_objects():
    sizes, asked = Counter(), Counter()
    for record in records("train", 300, "order") + records("val", 100, "order"):
        objects = record["objects"]
        questions = [question for _, question, _ in turns(record)]
        assert {kind for kind, _, _ in turns(record)} == {"order"} and len(set(questions)) == len(questions)
        assert all(said == answer(question, objects) for _, question, said in turns(record))
        depths = sorted(thing["depth"] for thing in objects)
        clear = min(far - near for near, far in pairwise(depths)) >= DEPTH_MARGIN
        words = {"leftmost", "rightmost", *(("nearest", "farthest") if clear else ())}
        assert set(questions) == {f"what color are the objects , {word} first ?" for word in words}
        sizes[len(objects)] += 1
        asked.update(words)
        asked[questions[0]] += 1
    assert set(sizes) == {2, 3, 4} and min(sizes.values()) > 0.25 * sizes.total()
    assert asked["nearest"] > 0.3 * asked["leftmost"]
    assert min(asked[f"what color are the objects , {word} first ?"] for word in ("leftmost", "rightmost", "farthest")) > 20
