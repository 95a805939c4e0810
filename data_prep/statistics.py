"""`megaunigame prepare stats DIR`: samples and questions of a data set, and the accuracy of guessing.

Two guessers see the question text only:
- chance: the fraction of right guesses if all legal answers of a kind's questions were equally likely;
- majority: for every exact question text the answer most often given to it, fitted on one half of the samples and
  scored on the other half. In a fair data set it does not beat chance by more than the sampling error.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaunigame.data.conversation import HUMAN, IMAGE_MARKER, read_conversation
from megaunigame.data.decode import META_FIELD, meta_of
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.manifest import LARGEST_MANIFEST, LONGEST_LOCAL_FILE, MANIFEST, parse_manifest
from megaunigame.data.shards.table import read_table
from megaunigame.data.shards.unfinished import FAILURES, check_finished
from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.untrusted_json import read_within

from . import recipe_rows
from .contact_sheet import contact_sheet
from .options import require_at_least
from .picture_statistics import picture_statistics, sample_at

YES_NO = {"yes", "no"}
MOST_ANSWERS = 12
"""A kind with more different answers than this is free text: guessing is not measured."""


@dataclass
class KindStatistics:
    """One kind of question. `chance` and `majority` are fractions 0..1, None for free text."""

    asked: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    chance: float | None = None
    majority: float | None = None


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "stats",
        description="Counts samples, captions, questions and answers, shows the accuracy of guessing from the question, "
        "sizes of pictures, numbers of masks and the distribution of depth.",
        epilog="examples:\n  megaunigame prepare stats shards/train\n  megaunigame prepare stats shards/train --sheet a.png\n"
        "  megaunigame prepare stats shards/mine --for launch/recipes/tiny_sft.yaml model.max_length=512\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument(
        "--samples", type=int, default=1000, help="samples, spread evenly, whose pictures are decoded (default 1000)"
    )
    parser.add_argument("--sheet", type=Path, metavar="P", help="write a picture of the first samples (image, depth, ...)")
    parser.add_argument("--sheet-samples", type=int, default=8, metavar="K", help="how many (default 8)")
    recipe_rows.add_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    require_at_least(arguments, samples=1, sheet_samples=1)
    manifest = read_manifest(arguments.folder)
    index = ShardIndex.open(arguments.folder)
    megabytes = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
    print(
        f"{one_line(manifest['name'])}: {manifest['samples']} samples, {len(manifest['shards'])} shards, {megabytes:.1f} MB, "
        f"fields {' '.join(manifest['fields'])}"
    )
    if (arguments.folder / FAILURES).is_file():
        print(f"{len((arguments.folder / FAILURES).read_text().splitlines())} entries failed, see {FAILURES}")
    for note, count in manifest["notes"].items():
        print(f"{quoted(count)} x {one_line(note)}")
    words: list[int] = []
    kinds = question_statistics(_counting_words(records(arguments.folder, manifest), words))
    if words:
        print(f"captions of {len(words)} samples: {min(words)} to {max(words)} words, {sum(words) / len(words):.1f} on average")
    _print_questions(kinds)
    pictures = picture_statistics(index, arguments.samples)
    print(f"\nof {pictures.samples} samples, {len(pictures.shorter_sides)} with a picture:")
    for line in pictures.lines():
        print(line)
    if arguments.sheet is not None:
        shown = [sample_at(index, position) for position in range(min(arguments.sheet_samples, index.samples))]
        contact_sheet(shown).save(arguments.sheet, format="png")
        print(arguments.sheet)
    if arguments.recipe:
        recipe_rows.print_rows(arguments.folder, arguments.recipe, arguments.samples)


def _counting_words(samples: Iterable[dict[str, Any]], words: list[int]) -> Iterator[dict[str, Any]]:
    """The samples; the number of words of every caption is appended to `words`."""
    for sample in samples:
        if "caption" in sample:
            words.append(len(sample["caption"].split()))
        yield sample


def _print_questions(kinds: dict[str, KindStatistics]) -> None:
    if kinds:
        print(f"{'kind':<12}{'asked':>8}{'chance':>9}{'majority':>10}  answers")
    for kind, statistics in sorted(kinds.items()):
        guesses = "".join(
            f"{100 * share:>{width}.1f}" if share is not None else f"{'-':>{width}}"
            for share, width in ((statistics.chance, 9), (statistics.majority, 10))
        )
        common = ", ".join(
            f"{one_line(answer, 80)} {100 * n / statistics.asked:.1f}%"
            for answer, n in (statistics.answers.most_common(MOST_ANSWERS) if statistics.chance is not None else [])
        )
        print(f"{one_line(kind, 40):<12}{statistics.asked:>8}{guesses}  {common or f'{len(statistics.answers)} different'}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """dataset.json of a folder. Raises DataError when there is none."""
    check_finished(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder}: no {MANIFEST}: not a folder of `megaunigame prepare`; pack it first (megaunigame prepare pack --help)"
        )
    content = read_within(folder / MANIFEST, LARGEST_MANIFEST)
    parse_manifest(str(folder / MANIFEST), content, LONGEST_LOCAL_FILE)  # names and numbers of the shards are checked there
    manifest: dict[str, Any] = {"notes": {}, **json.loads(content)}
    for name, kind in (("name", str), ("samples", int), ("config_hash", str), ("notes", dict)):
        if not isinstance(manifest.get(name), kind):
            raise DataError(f"{folder / MANIFEST}: `{name}` is not there or not a {kind.__name__}; run the same command again")
    return manifest


def records(folder: Path, manifest: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The json of every sample, in order, read through the indices. Raises DataError for one that is damaged."""
    for shard in manifest["shards"]:
        tar = folder / shard["file"]
        table = read_table(tar)
        with open(tar, "rb") as stream:
            for i in range(len(table)):
                offset, size = table.spans_of(i).get(META_FIELD, (0, 0))
                stream.seek(offset)
                yield meta_of(table.key(i), stream.read(size))


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
            # Neighbors go to the same half: one of an adversarial pair gives away the answer of the other.
            if number // 2 % 2:
                held.append((kind, question, answer))
            else:
                fitted[question][answer] += 1
    for answers in legal.values():
        # A question so rare that only one of yes and no occurs is still a yes-no question.
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


def _turns(sample: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(kind, question, answer), as training reads them, without the context."""
    if "conversations" not in sample:
        return iter(())
    first = next((turn["value"] for turn in sample["conversations"] if turn["from"] == HUMAN), "")
    pictures = next(k for k, line in enumerate([*first.split("\n"), ""]) if line != IMAGE_MARKER)  # marks lead in shards
    pairs = read_conversation(sample["conversations"], pictures).pairs
    kinds = sample["kinds"] if "kinds" in sample else ["conversation"] * len(pairs)
    return ((kind, question, answer) for kind, (question, answer) in zip(kinds, pairs, strict=True))


def _mean(values: Iterable[float]) -> float | None:
    collected = list(values)
    return sum(collected) / len(collected) if collected else None
