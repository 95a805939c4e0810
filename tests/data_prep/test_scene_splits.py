"""What sets the splits apart: held-out pairs, unseen looks, adversarial twins."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_prep.scenes import render
from data_prep.scenes.sampling import HELD_OUT
from data_prep.scenes.splits import SPLITS, Example, example


def pairs_in(shown: Example) -> set[tuple[str, str]]:
    return {(thing.color, thing.shape) for thing in shown.scene.things}


def things_in(shown: Example) -> set[tuple[object, ...]]:
    return {(t.shape, t.color, t.size, t.material, t.x, t.z) for t in shown.scene.things}


def words_of(shown: Example) -> str:
    return " ".join([shown.caption, *(f"{question} {answer}" for _, question, answer in shown.turns)])


@pytest.mark.parametrize("split", ["train", "val", "adversarial"])
def test_held_out_pairs_are_neither_shown_nor_named_in_training(split):
    for index in range(1000 if split == "train" else 300):
        shown = example(1, split, index)
        assert not pairs_in(shown) & set(HELD_OUT)
        assert not any(f"{color} {shape}" in words_of(shown) for color, shape in HELD_OUT)


def test_every_ood_scene_has_the_factors_it_claims():
    claimed = []
    for index in range(300):
        shown = example(1, "ood", index)
        factors = shown.extra["ood"]
        claimed.append(tuple(factors))
        look = shown.scene.look
        assert bool(pairs_in(shown) & set(HELD_OUT)) == ("pair" in factors)
        assert (look.ground_checker is not None) == ("look" in factors)
        assert (look.ambient < 0.3) == ("look" in factors)
        assert (look.light[1] < 0.55) == ("look" in factors)
    assert Counter(claimed) == dict.fromkeys([("pair",), ("look",), ("pair", "look")], 100)
    forced = set.union(*(pairs_in(example(1, "ood", index)) for index in range(0, 60, 3)))
    assert set(HELD_OUT) <= forced


def test_training_never_shows_the_unseen_look():
    looks = [example(1, "train", index).scene.look for index in range(300)]
    assert all(look.ground_checker is None and look.ambient > 0.3 and look.light[1] > 0.6 for look in looks)


def test_adversarial_twins_share_all_but_one_change_and_answer_differently():
    changes = set()
    for k in range(60):
        one, two = example(1, "adversarial", 2 * k), example(1, "adversarial", 2 * k + 1)
        assert one.extra == two.extra and one.extra["pair"] == k
        changes.add(one.extra["changed"])
        ((kind, question, answer),), ((other_kind, other_question, other_answer),) = one.turns, two.turns
        assert (kind, question) == (other_kind, other_question)
        assert answer != other_answer
        assert (one.scene.camera, one.scene.look) == (two.scene.camera, two.scene.look)
        kept = len(things_in(one) & things_in(two))
        things = max(len(one.scene.things), len(two.scene.things))
        assert kept >= things - (2 if one.extra["changed"] in ("side", "depth") else 1)
        pictures = [render.color(each.scene, 64).astype(int) for each in (one, two)]
        assert 0 < np.mean(np.abs(pictures[0] - pictures[1]).max(-1) > 12) < 0.5
    assert changes == {"color", "shape", "count", "side", "depth"}


def test_a_scene_depends_on_seed_split_and_index_only():
    for split in SPLITS:
        assert example(1, split, 7) == example(1, split, 7)
        assert example(1, split, 7).scene != example(2, split, 7).scene
    assert len({example(1, split, 7).scene for split in SPLITS}) == len(SPLITS)


def test_larger_pictures_show_the_same_scene():
    scene = example(1, "train", 11).scene
    small, large = render.color(scene, 64).astype(float), render.color(scene, 128).astype(float)
    shrunk = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 4
