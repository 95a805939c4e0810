"""Answers to the questions of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.inference.job import ERROR, Job, digest_of, identity_of
from megaunigame.inference.model import Model, Question
from megaunigame.inference.questions import AskedLine, asked_line, entry_of, read_items
from megaunigame.inference.running import Result, check_no_errors, run_job
from megaunigame.inference.settings import AnswerSettings
from megaunigame.inference.source import Source
from megaunigame.inference.team import Team

CUT = "cut"
"""Key of a result whose answer was ended by `max_tokens`."""
OWN = (ERROR, CUT)
"""Keys that say something about a result. A line may have them from an earlier output; they are not kept."""


@dataclass(frozen=True)
class _Asked:
    line: bytes
    said: AskedLine
    question: Question


def answer_file(
    source: Source,
    load: Callable[[], Model],
    *,
    questions: Path,
    out: Path,
    image_root: Path,
    settings: AnswerSettings,
    loading: Mapping[str, Any],
    batch: int,
) -> None:
    """Write `out`, on rank 0. Raises DataError after that when some questions have an error.

    `load`: called when there is something to do. `loading`: how it loads, option -> value.
    """
    lines = read_items(questions)
    identity = identity_of("answer", source, settings, loading) | {"--image-root": str(image_root.resolve())}
    job = Job(out, out.with_name(f"{out.name}.job"), identity, [digest_of(line.content) for line in lines])

    def prepare(number: int) -> _Asked:
        content = lines[number].content
        said = asked_line(content, number)
        return _Asked(content, said, said.load(image_root))

    def failed(number: int, error: DataError) -> Result:
        try:
            entry = _kept(entry_of(lines[number].content))
        except DataError:
            entry = {}
        return {"id": str(number), **entry, "line": lines[number].number, ERROR: str(error)}

    def ready() -> Callable[[Sequence[_Asked]], list[Result]]:
        model = load()
        return lambda asked: [
            _result(one, answer.text, answer.cut)
            for one, answer in zip(asked, model.answer([one.question for one in asked], settings), strict=True)
        ]

    steps: dict[str, Any] = {"check": source.check, "load": ready, "prepare": prepare, "failed": failed}
    results = run_job(job, Team.join(), batch=batch, unit="question", **steps)
    if cut := sum(CUT in result for result in results):
        print(f"{cut} answers have not ended after --max-tokens {settings.max_tokens}: they are marked `{CUT}`.", flush=True)
    check_no_errors(job, results, "question")


def _kept(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in OWN}


def _result(asked: _Asked, text: str, cut: bool) -> Result:
    """The fields of the line, and the answer. The reference is that of the line, else the last answer of its conversation, else
    its answer: an output that is asked again keeps its reference."""
    entry = _kept(entry_of(asked.line))
    reference = next((text for text in (entry.get("reference"), asked.said.reference or None) if text is not None), None)
    reference = entry.get("answer") if reference is None else reference
    said: dict[str, Any] = {"id": asked.said.item, **entry, "question": asked.said.question, "answer": text}
    return said | ({} if reference is None else {"reference": reference}) | ({CUT: True} if cut else {})
