from __future__ import annotations

import math

import pytest
import torch

from megaunigame.evaluation.asking import open_answers
from megaunigame.evaluation.metrics import Answer, chance, kind_scores, majority, normalize, pair_consistency, text_match
from megaunigame.pixels import psnr


def answer(reference: str, correct: bool = True, **fields) -> Answer:
    defaults = {"position": 0, "key": "k", "question": "q", "predicted": reference if correct else "?", "kind": "kind"}
    return Answer(**{**defaults, **fields}, reference=reference, correct=correct)


def test_normalise_forgets_case_spaces_and_outer_punctuation():
    assert normalize("  The Red-Cube.\n") == "the red-cube"
    assert text_match("Yes.", "yes") and not text_match("yes no", "yes")


def test_chance_is_one_over_the_answers_of_the_kind():
    assert chance([answer("yes"), answer("no"), answer("Yes")]) == 0.5


def test_chance_uses_the_visible_options_when_every_question_has_them():
    assert chance([answer("red", options=2), answer("blue", options=4)]) == pytest.approx((1 / 2 + 1 / 4) / 2)
    # One question without a limit: the kind is not about visible colors.
    assert chance([answer("red", options=2), answer("nothing"), answer("blue", options=4)]) == pytest.approx(1 / 3)


def test_majority_is_the_share_of_the_most_frequent_answer():
    assert majority([answer("2"), answer("2"), answer("3")]) == pytest.approx(2 / 3)


def test_kind_scores_keep_kinds_apart():
    scores = kind_scores([answer("yes", kind="b"), answer("no", correct=False, kind="b"), answer("red", kind="a")])
    assert [(s.kind, s.n, s.accuracy, s.chance) for s in scores] == [("a", 1, 1.0, 1.0), ("b", 2, 0.5, 0.5)]


def test_pair_consistency_wants_both_answers_right():
    answers = [
        answer("yes", True, position=0, pair="1"),
        answer("no", True, position=1, pair="1"),
        answer("yes", True, position=2, pair="2"),
        answer("no", False, position=3, pair="2"),
        answer("no", True, position=4, pair="3"),  # its partner is beyond the limit
        answer("no", True, position=5),  # not of the adversarial split
    ]
    assert pair_consistency(answers) == (2, 0.5, 0.25)


def test_a_question_that_is_asked_twice_about_one_picture_is_no_pair():
    assert pair_consistency([answer("yes", position=0, pair="1"), answer("yes", position=0, pair="1")])[0] == 0


def test_a_blind_model_is_never_consistent():
    blind = [answer(r, r == "yes", position=i, pair=str(i // 2)) for i, r in enumerate(["yes", "no"] * 10)]
    assert pair_consistency(blind)[:2] == (10, 0.0)


def test_without_pairs_there_is_no_consistency():
    pairs, right, guessed = pair_consistency([answer("yes")])
    assert pairs == 0 and math.isnan(right) and math.isnan(guessed)


def test_open_answers():
    meta = {"objects": [{"color": "red"}, {"color": "blue"}, {"color": "green"}]}
    assert open_answers(meta, "what color is the leftmost object ?", "red") == 3
    assert open_answers(meta, "is the red or the blue object nearer?", "blue") == 2
    assert open_answers(meta, "is there a red cube ?", "yes") is None
    assert open_answers({}, "what color is it ?", "red") is None


def test_psnr_per_picture():
    targets = torch.zeros(3, 3, 4, 4)
    pictures = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    equal, close, opposite = psnr(pictures, targets).tolist()
    assert equal > 100
    assert close == pytest.approx(20.0, abs=1e-3)  # 10 log10(4 / 0.04)
    assert opposite == pytest.approx(0.0, abs=1e-3)
