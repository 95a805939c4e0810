"""Scores of answers: accuracy with its two baselines (chance, majority), and consistency of pairs."""

from __future__ import annotations

import statistics
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One question and what the model said."""

    position: int
    """Place of the sample in the order of the shards."""
    key: str
    question: str
    reference: str
    predicted: str
    correct: bool
    kind: str
    pair: str | None = None
    """Pairs of near-identical images (adversarial split) share it."""
    options: int | None = None
    """Number of answers that the picture allows (the visible colors), or None when it does not limit them."""


@dataclass(frozen=True)
class KindScore:
    """Scores of one kind of question; shares in 0..1."""

    kind: str
    n: int
    accuracy: float
    chance: float
    """Of a random guess among the possible answers."""
    majority: float
    """Of always giving the most frequent answer of the kind."""


def normalize(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


def text_match(predicted: str, reference: str) -> bool:
    """Whether two answers are the same text after normalization."""
    return normalize(predicted) == normalize(reference)


def accuracy(answers: Sequence[Answer]) -> float:
    """Share of right answers."""
    return statistics.fmean(a.correct for a in answers)


def chance(answers: Sequence[Answer]) -> float:
    """Expected accuracy of a blind guess at questions of one kind.

    When the picture limits the answers of every question (`options`), the mean of 1 / options; otherwise one over the
    number of distinct answers of the kind.
    """
    options = [a.options for a in answers if a.options is not None]
    if len(options) == len(answers):
        return statistics.fmean(1 / n for n in options)
    return 1 / len({normalize(a.reference) for a in answers})


def majority(answers: Sequence[Answer]) -> float:
    """Accuracy of always giving the most frequent answer."""
    return Counter(normalize(a.reference) for a in answers).most_common(1)[0][1] / len(answers)


def by_kind(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Answers grouped by the kind of their question; kinds in alphabetical order."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.kind].append(answer)
    return dict(sorted(groups.items()))


def kind_scores(answers: Iterable[Answer]) -> list[KindScore]:
    return [KindScore(k, len(a), accuracy(a), chance(a), majority(a)) for k, a in by_kind(answers).items()]


def pair_consistency(answers: Iterable[Answer]) -> tuple[int, float, float]:
    """(pairs, share of pairs with every answer right, the same share for guesses).

    A pair is one question asked about the two images of an adversarial pair, whose answers differ: a model that does
    not look gets at most one of them right. Questions asked about one image only are left out.
    (0, nan, nan) without pairs.
    """
    answers = [a for a in answers if a.pair is not None]
    guess = {kind: chance(group) for kind, group in by_kind(answers).items()}
    pairs: dict[tuple[str | None, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        pairs[answer.pair, answer.question].append(answer)
    complete = [group for group in pairs.values() if len({a.position for a in group}) > 1]
    if not complete:
        return 0, float("nan"), float("nan")
    right = statistics.fmean(all(a.correct for a in group) for group in complete)
    guessed = statistics.fmean(guess[group[0].kind] ** len(group) for group in complete)
    return len(complete), right, guessed
