"""`model.max_length` against the pictures of the rows, and against the positions that the language model was trained on."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from megaunigame.config import EmaConfig, LoaderConfig, ModelConfig
from megaunigame.engine.memory_plan import describe
from megaunigame.engine.row_lengths import beyond_training, check_row_lengths
from megaunigame.errors import ConfigError, DataError
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from tests.tiny import write_tiny

TRAINED = 104
ASKED = RowRequest("u", UNDERSTAND, "s", 2)
DRAWN = RowRequest("g", GENERATE, "s", 2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Show-o: 16 codes of a drawn picture and 9 of a source, with their two borders each."""
    text = {"max_position_embeddings": TRAINED}
    folder = tmp_path_factory.mktemp("show_o")
    return write_tiny("show_o", folder, ["what is it ?"], settings={"source_size": 12}, text_config=text)


@pytest.fixture
def check(tiny):
    return lambda length, *requests: check_row_lengths(tiny.processor(length), plan_from(requests))


def test_rows_without_room_for_their_pictures_are_refused(check):
    check(22, DRAWN)
    with pytest.raises(ConfigError, match="model.max_length=21 leaves 4 tokens.* it needs 5. Give model.max_length=22 or more"):
        check(21, DRAWN)
    with pytest.raises(ConfigError, match="with a source image it needs 16. Give model.max_length=33 or more"):
        check(32, dataclasses.replace(DRAWN, takes_source=True))
    with pytest.raises(DataError, match="1 image.* take 12 tokens, and model.max_length is 16"):
        check(16, ASKED)


def test_rows_aside_are_checked_too(check):
    redrawn = dataclasses.replace(DRAWN, term="redrawn", aside=True)
    check(30, DRAWN, redrawn)
    with pytest.raises(ConfigError, match="Give model.max_length=33 or more"):
        check(30, DRAWN, dataclasses.replace(redrawn, takes_source=True))


def test_rows_beyond_the_trained_positions_are_known(tiny):
    config = ModelConfig(path=str(tiny.path), family="show_o", max_length=TRAINED)
    longer = dataclasses.replace(config, max_length=TRAINED + 8)
    assert beyond_training(tiny.family, config) == ""
    assert beyond_training(tiny.family, dataclasses.replace(longer, weights="random")) == ""
    said = beyond_training(tiny.family, longer)
    assert said.startswith(f"model.max_length=112, but the language model in {tiny.path} was trained on 104 positions")
    assert "type model.max_length=104; smaller pictures" in said


@pytest.mark.parametrize("length", [TRAINED, TRAINED + 8])
def test_the_plan_of_a_run_warns_of_them(tiny, length):
    config = ModelConfig(path=str(tiny.path), family="show_o", max_length=length)
    parts = {"schedule": SimpleNamespace(steps=1), "engine": SimpleNamespace(precision="bf16"), "ema": EmaConfig()}
    recipe = SimpleNamespace(model=config, loader=LoaderConfig(), **parts)
    model, plan = tiny.load(max_length=length), plan_from([ASKED])
    text = describe(model, recipe, plan, {UNDERSTAND: model.processor.largest(plan, UNDERSTAND)}, 1, 1)
    warnings = [line for line in text.splitlines() if "warning: model.max_length" in line]
    assert len(warnings) == (length > TRAINED)
