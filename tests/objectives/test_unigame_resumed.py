"""What of the game's recipe may change between two launches."""

from __future__ import annotations

import json
import logging

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from megaunigame.errors import CheckpointError
from megaunigame.objectives.unigame.saving import FILE, HEADER

PERTURBER = {"kind": "perturber", "hidden": 8, "budget": "relative", "eps_max": 0.5}
PGD = {"kind": "pgd", "steps": 2, "budget": "absolute", "eps_max": 0.5}


def saved(play, folder, **settings):
    for file in play(**settings).unigame.pending():
        file.write(folder)
    return folder


@pytest.mark.fault(
    "the game of a run is given other settings on a resume",
    does="refuses those that give its adversary and its buffer their meaning; a warning names the others",
    lost="",
)
@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ({}, {"mode": "simultaneous"}, "objectives.unigame.mode=alternating, this run has simultaneous"),
        ({}, {"path": "embedding"}, "objectives.unigame.path=decoder, this run has embedding"),
        ({}, {"buffer": {"hardness": "gap"}}, "objectives.unigame.buffer.hardness=loss, this run has gap"),
        ({}, {"adversary": {**PERTURBER, "budget": "absolute"}}, "adversary.budget=relative, this run has absolute"),
        ({}, {"adversary": {**PERTURBER, "hidden": 4}}, "adversary.hidden=8, this run has 4"),
        ({}, {"adversary": {**PGD, "budget": "relative"}}, "adversary.kind=perturber, this run has pgd"),
        ({"adversary": PGD}, {"adversary": {**PGD, "budget": "relative"}}, "adversary.budget=absolute, this run has relative"),
    ],
)
def test_another_game_is_refused(play, tmp_path, before, now, named):
    saved(play, tmp_path, **{"adversary": PERTURBER, **before})
    with pytest.raises(CheckpointError) as caught:
        play(**{"adversary": PERTURBER, **now}).unigame.load(tmp_path)
    assert named in str(caught.value) and f"model.weights_from={tmp_path}" in str(caught.value)


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        (PERTURBER, {**PERTURBER, "eps_max": 0.1}, ["objectives.unigame.adversary.eps_max was 0.5, and is 0.1 from here on"]),
        (PERTURBER, {**PERTURBER, "eps_min": 0.1}, ["eps_min was 0.0, and is 0.1"]),
        (PGD, {**PGD, "steps": 1, "eps_max": 0.2}, ["eps_max was 0.5, and is 0.2", "steps was 2, and is 1"]),
        (PERTURBER, PERTURBER, []),
    ],
)
def test_another_length_is_told_of(play, tmp_path, caplog, before, now, named):
    saved(play, tmp_path, adversary=before)
    with caplog.at_level(logging.WARNING):
        play(adversary=now).unigame.load(tmp_path)
    assert all(part in caplog.text for part in named)
    assert bool(caplog.records) == bool(named)


def test_a_controlled_length_stays_within_new_limits(play, tmp_path):
    controller = {"flipped": 0.1}
    saved(play, tmp_path, adversary=PERTURBER, controller=controller)
    game = play(adversary={**PERTURBER, "eps_max": 0.1}, controller=controller).unigame
    game.load(tmp_path)
    assert game.adversary.held == 0.1


def test_other_settings_and_older_files_go_on_in_silence(play, tmp_path, caplog):
    saved(play, tmp_path, adversary=PERTURBER)
    play(adversary=PERTURBER, gain=3.0, clip_norm=2.0, buffer={"temperature": 5.0}).unigame.load(tmp_path)
    with safe_open(tmp_path / FILE, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["settings"]
    save_file(tensors, tmp_path / FILE, {HEADER: json.dumps(header)})
    play(adversary={**PERTURBER, "budget": "absolute"}).unigame.load(tmp_path)
    assert not caplog.records
