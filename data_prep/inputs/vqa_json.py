"""`--format vqa-json`: the questions and annotations files of VQA v2, one sample per picture with all its questions."""

from __future__ import annotations

import argparse
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line, quoted

from .base import Entry, ListedPictures
from .conversation import MARKER
from .json_file import read_json, require_folder, sha256_of
from .sample import numbered_key

KINDS: dict[str, type | tuple[type, ...]] = {
    **{"image_id": (int, str), "question_id": (int, str), "question": str},
    **{"multiple_choice_answer": str, "answer_type": str, "answers": list},
}
"""Key of a question or an annotation -> what it must be."""


@dataclass(frozen=True)
class VqaJson(ListedPictures):
    """Answers are those of `multiple_choice_answer`; the ten people's answers are kept for the VQA metric.

    The record of a picture: `image_id`, `question_ids`; with annotations `conversations`, `kinds` (the answer types) and
    `answers` (per question a list of texts); of a test set without annotations `questions` instead.
    """

    shard_name = "vqa"
    needs = ("questions", "image_root")
    takes = ("annotations", "image_pattern", "shard_size")

    questions: Path
    questions_sha256: str
    annotations: Path | None
    annotations_sha256: str | None
    image_root: Path
    image_pattern: str | None
    shard_size: int

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> VqaJson:
        require_folder(arguments.image_root, "--image-root")
        annotations: Path | None = arguments.annotations
        return cls(
            questions=arguments.questions,
            questions_sha256=sha256_of(arguments.questions, "--questions"),
            annotations=annotations,
            annotations_sha256=sha256_of(annotations, "--annotations") if annotations else None,
            image_root=arguments.image_root,
            image_pattern=arguments.image_pattern,
            shard_size=arguments.shard_size,
        )

    def identity(self) -> dict[str, Any]:
        return {
            "questions": self.questions.name,
            "questions_sha256": self.questions_sha256,
            "annotations": self.annotations.name if self.annotations else None,
            "annotations_sha256": self.annotations_sha256,
            "image_root": str(self.image_root),
            "image_pattern": self.image_pattern,
            "shard_size": self.shard_size,
        }

    def entries(self) -> list[Entry]:
        return _entries(self)


@functools.lru_cache(maxsize=1)  # a worker reads the files once, not once per shard
def _entries(source: VqaJson) -> list[Entry]:
    content = read_json(source.questions, "--questions", source.questions_sha256)
    questions = _rows(content, "questions", {"image_id", "question", "question_id"}, f"--questions {source.questions}")
    pattern = source.image_pattern or _coco_pattern(content, source.questions)
    by_image: dict[int | str, list[dict[str, Any]]] = {}
    for question in questions:
        by_image.setdefault(question["image_id"], []).append(question)
    annotations = _annotations(source)
    entries = []
    for number, (image_id, asked) in enumerate(by_image.items()):
        record: dict[str, Any] = {"image_id": image_id, "question_ids": [question["question_id"] for question in asked]}
        if annotations is None:
            record["questions"] = [question["question"] for question in asked]
        else:
            record |= _answered(source, asked, annotations)
        entries.append(Entry(numbered_key(number, image_id), record, (_image_name(pattern, image_id),)))
    return entries


def _answered(source: VqaJson, asked: list[dict[str, Any]], annotations: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    conversations, kinds, answers = [], [], []
    for question in asked:
        if question["question_id"] not in annotations:
            raise DataError(
                f"--annotations {source.annotations}: nothing about question {quoted(question['question_id'])} of "
                f"{source.questions.name}; give the two files of one split, or no --annotations for a test set"
            )
        annotation = annotations[question["question_id"]]
        conversations.append({"from": "human", "value": question["question"].replace(MARKER, "").strip()})
        conversations.append({"from": "gpt", "value": annotation["multiple_choice_answer"]})
        kinds.append(annotation["answer_type"])
        answers.append([given["answer"] for given in annotation["answers"]])
    conversations[0]["value"] = f"{MARKER}\n{conversations[0]['value']}"
    return {"conversations": conversations, "kinds": kinds, "answers": answers}


def _annotations(source: VqaJson) -> dict[Any, dict[str, Any]] | None:
    if source.annotations is None or source.annotations_sha256 is None:
        return None
    content = read_json(source.annotations, "--annotations", source.annotations_sha256)
    needed = {"question_id", "multiple_choice_answer", "answer_type", "answers"}
    rows = _rows(content, "annotations", needed, f"--annotations {source.annotations}")
    return {row["question_id"]: row for row in rows}


def _rows(content: Any, name: str, needed: set[str], what: str) -> list[dict[str, Any]]:
    """The list of objects under `name`. Raises DataError unless each has all needed keys, of the kinds in `KINDS`."""
    form = f'{{"{name}": [{{{", ".join(sorted(needed))}}}, ...]}}'
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{what}: has no {name}; wanted {form}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not needed <= row.keys():
            lacking = sorted(needed - row.keys()) if isinstance(row, dict) else sorted(needed)
            raise DataError(f"{what}: {name}[{number}] lacks {', '.join(lacking)}; wanted {form}")
        wrong = sorted(key for key in needed if not isinstance(row[key], KINDS[key]))
        if wrong or not all(isinstance(given, dict) and "answer" in given for given in row.get("answers", ())):
            raise DataError(f"{what}: {name}[{number}] has {', '.join(wrong) or 'answers'} of another form; wanted {form}")
    return rows


def _coco_pattern(content: dict[str, Any], questions: Path) -> str:
    """VQA v2 names the COCO folder of its pictures; test-dev uses those of test."""
    # It becomes a part of a format and of a path.
    if not isinstance(content.get("data_subtype"), str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", content["data_subtype"]):
        raise DataError(
            f"--questions {questions}: has no data_subtype (letters, digits, - and _) to derive picture names from; "
            "type --image-pattern, for example --image-pattern 'COCO_train2014_{image_id:012d}.jpg'"
        )
    return f"COCO_{content['data_subtype'].replace('-dev', '')}_{{image_id:012d}}.jpg"


def _image_name(pattern: str, image_id: int | str) -> str:
    try:
        return pattern.format(image_id=image_id)
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"--image-pattern {pattern}: cannot be filled with image_id {quoted(image_id)} ({one_line(error)}); "
            "legal is for example 'COCO_train2014_{image_id:012d}.jpg', for ids that are text '{image_id}.jpg'"
        ) from error
