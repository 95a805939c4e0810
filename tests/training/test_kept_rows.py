"""Rows of a broken step in files, within bounds."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.errors import ConfigError, DataError
from megaunigame.training import kept_rows
from megaunigame.training.kept_rows import KeptPass, KeptRow, KeptStep
from tests.step.test_kept_inputs import GENERATE, UNDERSTAND

ROWS = [
    KeptRow("talk", "understanding", "a", "train", 17, "data-000001.tar", "nan", True),
    KeptRow("talk", "understanding", "", "", -1, "", "0.0", False),
]
PASSES = [KeptPass(0, GENERATE, ROWS), KeptPass(1, UNDERSTAND, ROWS)]
KEPT = KeptStep(12, 3, 4, 5, PASSES)


def test_a_step_comes_back(tmp_path):
    assert kept_rows.write(tmp_path, KEPT) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rank-00003.json", "rank-00003.safetensors"]
    (back,) = kept_rows.read(tmp_path)
    assert dataclasses.replace(back, passes=[]) == dataclasses.replace(KEPT, passes=[])
    assert [(p.micro_step, p.rows) for p in back.passes] == [(p.micro_step, p.rows) for p in PASSES]
    for ours, theirs in zip(PASSES, back.passes, strict=True):
        assert torch.equal(ours.inputs.tokens, theirs.inputs.tokens) and ours.inputs.keys == theirs.inputs.keys
    assert torch.equal(back.passes[1].inputs.images, UNDERSTAND.images)


def test_a_pass_that_is_too_large_is_left_out_and_smaller_ones_are_not(tmp_path, monkeypatch):
    sizes = [part.bytes for part in PASSES]
    assert sizes[1] < sizes[0] or sizes[0] < sizes[1]
    small, large = sorted(PASSES, key=lambda part: part.bytes)
    monkeypatch.setattr(kept_rows, "MOST_BYTES", large.bytes - 1)
    assert kept_rows.write(tmp_path, dataclasses.replace(KEPT, passes=[large, small])) == 1
    (back,) = kept_rows.read(tmp_path)
    assert [part.inputs.pass_name for part in back.passes] == [small.inputs.pass_name]
    monkeypatch.setattr(kept_rows, "MOST_BYTES", large.bytes + small.bytes)
    assert kept_rows.write(tmp_path, KEPT) == 0, "the bound itself is legal"
    assert kept_rows.write(tmp_path, dataclasses.replace(KEPT, passes=[large, small, small])) == 1, "it is one for all passes"


def test_so_many_steps_are_kept(tmp_path):
    for step in range(1, kept_rows.MOST_STEPS + 1):
        assert kept_rows.has_room(tmp_path, step)
        kept_rows.step_folder(tmp_path, step).mkdir(parents=True)
    assert not kept_rows.has_room(tmp_path, kept_rows.MOST_STEPS + 1)
    assert kept_rows.has_room(tmp_path, 3), "a step that is made again is written again"
    assert kept_rows.newest(tmp_path) == kept_rows.step_folder(tmp_path, kept_rows.MOST_STEPS)


def test_a_kill_between_the_files_leaves_nothing_to_read(tmp_path, monkeypatch):
    kept_rows.write(tmp_path, KEPT)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(kept_rows, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        kept_rows.write(tmp_path, KEPT)
    with pytest.raises(ConfigError, match="holds no kept rows"):
        list(kept_rows.read(tmp_path))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"step": 1}', '{"step": 1, "rank": 0, "world_size": 1, "seed": 0, "passes": 3}']
)
def test_a_damaged_description_is_named(tmp_path, content):
    kept_rows.write(tmp_path, KEPT)
    (tmp_path / "rank-00003.json").write_text(content)
    with pytest.raises(DataError, match=r"rank-00003.*Replay another step"):
        list(kept_rows.read(tmp_path))
