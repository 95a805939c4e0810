"""Pictures of the texts of a file, and of given pictures."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from megaunigame.data.decode import IMAGE_FIELDS
from megaunigame.errors import ConfigError, DataError
from megaunigame.inference.job import ERROR, Job, digest_of, identity_of
from megaunigame.inference.model import Model, PictureRequest
from megaunigame.inference.pictures import as_pixels
from megaunigame.inference.prompts import check_kind, prompt_line
from megaunigame.inference.questions import read_items
from megaunigame.inference.redraws import Redraw
from megaunigame.inference.running import Result, check_no_errors, run_job
from megaunigame.inference.settings import DrawSettings
from megaunigame.inference.source import Source
from megaunigame.inference.team import Team
from megaunigame.pixels import as_image
from megaunigame.step.requests import CROP
from megaunigame.storage.whole_files import write_whole

INDEX, JOB = "index.jsonl", "job"
"""In the folder of the pictures."""
FILE = "file"
"""Key of a result: the name of its picture."""
SHA256 = "sha256"
"""Key of a result: of the content of its picture. Another line may have had a picture of the same name."""
DRAWN = "drawn"
"""Key of a result that is not kept yet: its picture, a tensor."""
LONGEST_STEM = 80


@dataclass(frozen=True)
class _Drawing:
    request: PictureRequest
    result: Result
    """What index.jsonl says of it."""


def draw_file(
    source: Source,
    load: Callable[[], Model],
    *,
    prompts: Path,
    per_prompt: int,
    out: Path,
    settings: DrawSettings,
    loading: Mapping[str, Any],
    batch: int,
) -> None:
    """Write the pictures of a file of prompts into the folder `out`, and its index on rank 0.

    `load`, `loading`: as of `answer_file`. Raises DataError after that when some prompts have an error.
    """
    check_kind(prompts)
    lines = read_items(prompts)
    items = [(number, sample) for number in range(len(lines)) for sample in range(per_prompt)]
    identity = identity_of("draw", source, settings, loading) | {"--per-prompt": per_prompt}
    job = _job(out, identity, [digest_of([lines[number].content.decode("latin-1"), sample]) for number, sample in items])

    def prepare(item: int) -> _Drawing:
        number, sample = items[item]
        name, prompt = prompt_line(prompts, lines[number].content, number)
        result = {"id": name, "prompt": prompt, "sample": sample, FILE: f"{number:06d}-{sample}.png"}
        return _Drawing(PictureRequest(prompt, item=name, sample=sample), result)

    def failed(item: int, error: DataError) -> Result:
        number, sample = items[item]
        return {"id": str(number), "line": lines[number].number, "sample": sample, ERROR: str(error)}

    drawer = _drawer(load, settings, CROP)
    steps: dict[str, Any] = {"check": source.check, "load": drawer, "prepare": prepare, "failed": failed, "keep": _keeper(out)}
    results = run_job(job, Team.join(), batch=batch, unit="picture", **steps)
    check_no_errors(job, results, "picture")


def redraw_files(
    source: Source,
    load: Callable[[], Model],
    *,
    pictures: Sequence[Path],
    to: str,
    how: Redraw,
    out: Path,
    settings: DrawSettings,
    loading: Mapping[str, Any],
    batch: int,
) -> None:
    """Write what the model draws of each picture into the folder `out`, and its index on rank 0.

    Raises ConfigError when there is no picture, DataError at the end when some cannot be used.
    """
    files = picture_files(pictures)
    if inside := [file for file in files if file.parent.resolve() == out.resolve()]:
        raise ConfigError(
            f"{inside[0]} is in the folder --out {out}: the next launch would take what this one has drawn for its pictures. "
            "Give another --out."
        )
    asked = {"--to": to, "--prompt": how.prompt, "--geometry": how.geometry}
    identity = identity_of("redraw", source, settings, loading) | asked
    job = _job(out, identity, [digest_of(os.path.abspath(file)) for file in files])

    def prepare(item: int) -> _Drawing:
        file = files[item]
        stem = re.sub(r"[^\w.-]", "_", file.stem)[:LONGEST_STEM]
        result = {"id": str(item), "picture": str(file), "to": to, "prompt": how.prompt, FILE: f"{item:06d}-{stem}.png"}
        return _Drawing(PictureRequest(how.prompt, as_pixels(file), item=str(item)), result)

    def failed(item: int, error: DataError) -> Result:
        return {"id": str(item), "picture": str(files[item]), ERROR: str(error)}

    drawer = _drawer(load, settings, how.geometry)
    steps: dict[str, Any] = {"check": source.check, "load": drawer, "prepare": prepare, "failed": failed, "keep": _keeper(out)}
    results = run_job(job, Team.join(), batch=batch, unit="picture", **steps)
    check_no_errors(job, results, "picture")


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders that look like pictures, in the order of their names.

    Raises ConfigError for a path that is not there, and when there is no picture.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if file.suffix.lower().removeprefix(".") in IMAGE_FIELDS)
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"No file and no folder {path}. Give pictures, or folders of pictures.")
    if not found:
        raise ConfigError(f"No pictures in {', '.join(map(str, paths))}. Their names end with .png, .jpg and so on.")
    return found


def _job(out: Path, identity: dict[str, object], digests: list[str]) -> Job:
    """A result of it counts while its picture is there, and has the content that was drawn."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Give the name of a folder.")
    return Job(out / INDEX, out / JOB, identity, digests, holds=_checker(out))


def _checker(out: Path) -> Callable[[Result], bool]:
    """Whether the picture of a result is the one that was drawn; each that is is read once."""
    found: set[tuple[object, object]] = set()

    def holds(result: Result) -> bool:
        picture = result.get(FILE), result.get(SHA256)
        if picture not in found and _sha256_of(out / str(result.get(FILE))) == result.get(SHA256, ""):
            found.add(picture)
        return picture in found

    return holds


def _sha256_of(file: Path) -> str | None:
    """None: there is no such file."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _drawer(
    load: Callable[[], Model], settings: DrawSettings, geometry: str
) -> Callable[[], Callable[[Sequence[_Drawing]], list[Result]]]:
    def ready() -> Callable[[Sequence[_Drawing]], list[Result]]:
        model = load()

        def draw(drawings: Sequence[_Drawing]) -> list[Result]:
            drawn = model.picture([drawing.request for drawing in drawings], settings, geometry)
            return [drawing.result | {DRAWN: picture} for drawing, picture in zip(drawings, drawn, strict=True)]

        return draw

    return ready


def _keeper(out: Path) -> Callable[[Result], Result]:
    """Writes the picture of a result before index and parts name it."""

    def keep(result: Result) -> Result:
        kept = {name: value for name, value in result.items() if name != DRAWN}
        if DRAWN not in result:
            return kept
        return kept | {SHA256: write_picture(result[DRAWN], out / result[FILE])}

    return keep


def write_picture(picture: Tensor, file: Path) -> str:
    """A PNG of a uint8 picture (3, h, w): whole, or not there. Returns the hex SHA-256 of the file."""
    content = io.BytesIO()
    as_image(picture).save(content, format="PNG")
    write_whole(file, content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()
