"""`python -m data_prep stats DIR`: what is asked in a data set, and how far guessing gets.

Two guessers know the question text only:
- chance: the share of right guesses if all legal answers of a kind's questions were equally likely;
- majority: for every exact question text the answer most often given to it, fitted on one half of the samples and
  scored on the other half. In a fair data set it does not beat chance by more than the sampling error.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.shard_writer import MANIFEST
from megaunigame.errors import DataError

MARKER = "<image>\n"
YES_NO = {"yes", "no"}
MOST_ANSWERS = 12
"""A kind with more different answers than this is free text: no guesser is tried on it."""


@dataclass
class KindStatistics:
    """One kind of question. `chance` and `majority` are shares 0..1, None for free text."""

    asked: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    chance: float | None = None
    majority: float | None = None


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "stats",
        help="count samples, questions and answers",
        description="Counts samples, questions and answers, and shows how far guessing from the question gets.",
        epilog="examples:\n  python -m data_prep stats data/train\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    manifest = read_manifest(arguments.folder)
    megabytes = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    print(
        f"{manifest['name']}: {manifest['samples']} samples, {len(manifest['shards'])} shards, {megabytes:.1f} MB, "
        f"fields {' '.join(manifest['fields'])}"
    )
    print(f"{'kind':<12}{'asked':>8}{'chance':>9}{'majority':>10}  answers")
    for kind, statistics in sorted(question_statistics(records(arguments.folder, manifest)).items()):
        guesses = "".join(
            f"{100 * share:>{width}.1f}" if share is not None else f"{'-':>{width}}"
            for share, width in ((statistics.chance, 9), (statistics.majority, 10))
        )
        common = ", ".join(
            f"{answer} {100 * n / statistics.asked:.1f}%"
            for answer, n in (statistics.answers.most_common(MOST_ANSWERS) if statistics.chance is not None else [])
        )
        print(f"{kind:<12}{statistics.asked:>8}{guesses}  {common or f'{len(statistics.answers)} different'}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """dataset.json of a folder. Raises DataError when there is none."""
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder}: no {MANIFEST}, so it is no finished data set; run the scenes or pack command again to finish it"
        )
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def records(folder: Path, manifest: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The json of every sample, in order, read through the indices."""
    for shard in manifest["shards"]:
        index = json.loads((folder / shard["file"]).with_suffix(".idx.json").read_text())
        with open(folder / shard["file"], "rb") as tar:
            for sample in index["samples"]:
                offset, size = sample["fields"]["json"]
                tar.seek(offset)
                yield json.loads(tar.read(size))


def question_statistics(samples: Iterable[dict[str, Any]]) -> dict[str, KindStatistics]:
    """Statistics per kind; question-answer pairs without a kind count as `conversation`."""
    kinds: dict[str, KindStatistics] = defaultdict(KindStatistics)
    fitted: dict[str, Counter[str]] = defaultdict(Counter)
    held: list[tuple[str, str, str]] = []
    legal: dict[str, set[str]] = defaultdict(set)
    asked: list[tuple[str, str]] = []
    for number, sample in enumerate(samples):
        for kind, question, answer in _turns(sample):
            kinds[kind].asked += 1
            kinds[kind].answers[answer] += 1
            legal[question].add(answer)
            asked.append((kind, question))
            # Neighbours go to the same half: the two of an adversarial pair answer each other.
            if number // 2 % 2:
                held.append((kind, question, answer))
            else:
                fitted[question][answer] += 1
    for answers in legal.values():
        # A question asked so rarely that it met one answer only is still a yes-no question.
        if answers <= YES_NO:
            answers |= YES_NO
    for kind, statistics in kinds.items():
        if len(statistics.answers) > MOST_ANSWERS:
            continue
        statistics.chance = _mean(1 / len(legal[question]) for k, question in asked if k == kind)
        statistics.majority = _mean(
            float(bool(fitted[question]) and fitted[question].most_common(1)[0][0] == answer)
            for k, question, answer in held
            if k == kind
        )
    return dict(kinds)


def _turns(sample: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    spoken = [turn["value"] for turn in sample["conversations"] if turn["from"] != "system"]
    questions = [question.removeprefix(MARKER) for question in spoken[0::2]]
    kinds = sample["kinds"] if "kinds" in sample else ["conversation"] * len(questions)
    return zip(kinds, questions, spoken[1::2], strict=True)


def _mean(values: Iterable[float]) -> float | None:
    collected = list(values)
    return sum(collected) / len(collected) if collected else None
