"""What trackers are shown of a run besides numbers: lines of pictures, and the answers of an evaluation next to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from megaunigame.monitoring.history import Evaluation
from megaunigame.monitoring.trackers.base import TrackedPicture
from megaunigame.pixels import Panel, as_image

MOST_LINES = 16
"""Lines of pictures of one suite, and pictures whose questions are shown."""
GAP = 4


def of_panels(panels: Sequence[Panel]) -> list[TrackedPicture]:
    """The panels of a step."""
    counts: dict[str, int] = {}
    lines = []
    for panel in panels:
        number = counts[panel.title] = counts.get(panel.title, 0) + 1
        images = {name: as_image(picture) for name, picture in panel.pictures.items()}
        lines.append(_line(panel.title, f"line {number}", images, panel.texts))
    return lines


def of_evaluation(evaluation: Evaluation) -> list[TrackedPicture]:
    """The pictures of the first samples of each suite; files that are gone are left out. Raises OSError."""
    lines = []
    for label, result in evaluation.suites.items():
        entries = result["pictures"]
        for row in list(dict.fromkeys(entry["row"] for entry in entries))[:MOST_LINES]:
            of_row = [entry for entry in entries if entry["row"] == row]
            files = {entry["column"]: evaluation.folder / entry["file"] for entry in of_row}
            images = {column: _opened(file) for column, file in files.items() if file.is_file()}
            if images:
                lines.append(_line(label, f"sample {row}", images, {"caption": of_row[0]["caption"]}))
    return lines


def _opened(file: Path) -> Image.Image:
    with Image.open(file, formats=("PNG",)) as image:
        return image.convert("RGB")


def _line(group: str, line: str, images: Mapping[str, Image.Image], texts: Mapping[str, str]) -> TrackedPicture:
    width = sum(image.width for image in images.values()) + GAP * (len(images) - 1)
    strip = Image.new("RGB", (max(1, width), max((image.height for image in images.values()), default=1)), "white")
    left = 0
    for image in images.values():
        strip.paste(image, (left, 0))
        left += image.width + GAP
    caption = "; ".join([", ".join(images), *(f"{name}: {text}" for name, text in texts.items())])
    return TrackedPicture(group, line, strip, caption)


def answers(evaluation: Evaluation, first: Evaluation | None) -> dict[str, str]:
    """Suite -> its questions with their answers as a table in Markdown; of suites that have shown any.

    `first`: an earlier evaluation, whose answers stand next to these.
    """
    return {
        label: _answers(result["questions"], first.suites[label]["questions"] if first and label in first.suites else [])
        for label, result in evaluation.suites.items()
        if result["questions"]
    }


def _answers(questions: Sequence[Mapping[str, Any]], earlier: Sequence[Mapping[str, Any]]) -> str:
    before = {(q["image"], q["question"]): q for q in earlier}
    head = ["picture", "question", "answer", *(["before"] if before else []), "now"]
    rows = [head, ["---"] * len(head)]
    images = list(dict.fromkeys(q["image"] for q in questions))[:MOST_LINES]
    for q in questions:
        if q["image"] in images:
            old = before.get((q["image"], q["question"]))
            said = [_said(old) if old else "-"] if before else []
            rows.append([q["image"] or "-", q["question"], q["answer"], *said, _said(q)])
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _said(question: Mapping[str, Any]) -> str:
    return f"{'✓' if question['correct'] else '✗'} {question['predicted'] or '(nothing)'}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
