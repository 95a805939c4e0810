"""The shipped tiny model, and pictures of scenes that nobody trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import megaunigame
from data_prep.scenes.samples import sample
from megaunigame.inference.model import Model

WEIGHTS = Path(megaunigame.__file__).parent / "tiny_world" / "weights" / "janus"
SIZE = 64


class Scene(NamedTuple):
    picture: Path
    caption: str
    questions: list[tuple[str, str]]
    """(question, answer), one kind each."""


@pytest.fixture(scope="session")
def tiny() -> Model:
    return megaunigame.load(WEIGHTS, device="cpu")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    folder = tmp_path_factory.mktemp("scenes")
    return [_scene(folder, index) for index in range(11)]


def _scene(folder: Path, index: int) -> Scene:
    fields: dict[str, Any] = sample(77, "val", index, SIZE)
    meta = json.loads(fields["json"])
    picture = folder / f"{index}.png"
    picture.write_bytes(fields["png"])
    said = [turn["value"].removeprefix("<image>\n") for turn in meta["conversations"]]
    return Scene(picture, meta["caption"], list(zip(said[::2], said[1::2], strict=True)))
