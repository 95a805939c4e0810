"""The attack, the pool it fills, sampling and the host's side of a checkpoint, on a device other than the host."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors import safe_open

from megaunigame.models.diffusion import flow
from megaunigame.objectives.player import Context
from megaunigame.objectives.unigame import UniGame
from megaunigame.objectives.unigame.game import PENALTY, Game
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.replay.hard_buffer import HardBuffer
from megaunigame.replay.records import RecordLayout
from megaunigame.settings import fill
from megaunigame.step.inputs import put_rows
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from tests.devices.fake_device import DEVICE, load, move, no_waiting, on_host, transfer
from tests.devices.rows import aside, collated
from tests.objectives.played_by_hand import ADVERSARIES
from tests.objectives.played_by_hand import aside as learner_aside
from tests.worlds import OneRank

PLAN = plan_from(
    [
        RowRequest("clean", UNDERSTAND, "s", 2),
        RowRequest("adversarial", UNDERSTAND, None, 2),
        RowRequest("redraw", GENERATE, "s", 2, takes_source=True, aside=True),
        RowRequest("attack", UNDERSTAND, "s", 2, takes_source=True, shares="redraw", aside=True),
    ]
)


def game(model, monkeypatch, **settings) -> Game:
    """Ready for its first step; built on the host."""
    objective = UniGame(fill(Settings, {"clean_rows": 2, "attack_rows": 2, "pictures_every": 0, **settings}, "unigame"))
    game = objective.player(Context(model, learner_aside(model), PLAN, OneRank(), 0))
    assert game is not None
    # A generator of a device without a driver cannot be made: these draw on the host, and what they draw is carried over.
    monkeypatch.setattr(game, "_generator", lambda *where: torch.Generator().manual_seed(0))
    return game


def carried(objective: Game) -> None:
    """The game to the device; inside of `no_waiting`."""
    move(objective.adversary, DEVICE)
    objective.parameters = list(objective.adversary.parameters())
    world = OneRank(device=DEVICE)
    objective.context = dataclasses.replace(objective.context, data_ranks=world)
    objective.pool.context = objective.context
    objective.pool.tally = type(objective.pool.tally)(DEVICE)
    objective.round = objective._round([], attacks=True)
    objective.round.answer_tokens = objective.round.attacked_pictures = torch.ones((), device=DEVICE)


@pytest.mark.parametrize("adversary", ["perturber", "pgd"])
@pytest.mark.parametrize("path", ["decoder", "embedding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alternating_attacks(monkeypatch, home, family, path, adversary, dtype):
    model = load(family, home)
    objective = game(model, monkeypatch, path=path, adversary=ADVERSARIES[adversary])
    micro = MicroStep(0, PLAN, {}, aside(model))
    step = Step(0, 1e-3, [micro], 1e-3)
    with no_waiting(monkeypatch):
        transfer(model, DEVICE, dtype)
        carried(objective)
        objective.attack(step, micro, None)
        assert all(gradient.device == DEVICE for gradient in objective.round.gradients)
        [(question, packed, _)] = objective.pool.mined
        assert question is micro.aside["attack"] and packed.device == DEVICE and packed.shape[:2] == (2, 1)
        assert objective.pool.tally.sums().device == DEVICE


@pytest.mark.parametrize("path", ["decoder", "embedding"])
def test_simultaneous_attacks_join_the_learners_rows(monkeypatch, home, family, path):
    model = load(family, home)
    settings = {"path": path, "mode": "simultaneous", "adversary": ADVERSARIES["perturber"], "hard_rows": 0}
    objective, sources, rows = game(model, monkeypatch, **settings), aside(model), collated(model)[UNDERSTAND]
    rows = put_rows(rows, slice(2, 4), sources["attack"])
    with no_waiting(monkeypatch):
        transfer(model, DEVICE, torch.bfloat16)
        carried(objective)
        micro = MicroStep(0, PLAN, {UNDERSTAND: rows.to(DEVICE)}, sources)
        step = Step(0, 1e-3, [micro], 1e-3)
        objective.attack(step, micro, None)
        output = model(micro.inputs[UNDERSTAND])
        (output.loss_sum.sum() + micro.losses[PENALTY]).backward()
        objective.after_pass(step, micro, output)
        assert len(objective.pool.mined) == 1
        assert all(p.grad.device == DEVICE for p in objective.parameters)
        assert sum(p.grad is not None for p in model.parameters()) > 10


def test_pictures_and_answers(monkeypatch, home, family):
    model = load(family, home).eval()
    prompts = model.processor.generate_prompts(["a ball", "no"])
    monkeypatch.setattr(flow, "solver", on_host(flow.solver))  # its times are numpy's
    questions = model.processor.prompt_inputs([[], []], ["what is it ?", "no ?"])
    with no_waiting(monkeypatch) as copies:
        transfer(model, DEVICE, torch.bfloat16)
        drawn = model.sample(prompts.to(DEVICE), guidance=2.0, temperature=1.0, generator=torch.Generator().manual_seed(0))
        assert drawn.device == DEVICE and drawn.shape[:2] == (2, 3)
        said = model.answer(questions.to(DEVICE), max_new_tokens=3)
        assert said.device == DEVICE and said.shape == (2, 3)
        # A few small copies are made while pictures are drawn, none of which is in a step of the learner.
        assert all("-> lazy" in copy for copy in copies.found), "read back to the host"
        copies.found.clear()


def test_merge_gives_the_collectives_what_is_on_the_device(monkeypatch):
    """Fake tensors hold no table, so the device is asked for where tensors are sent to it."""
    sent = []

    class Noted(OneRank):
        def all_gather(self, tensor):
            sent.append(tensor)
            return tensor.unsqueeze(0)

        def all_to_all(self, parts, sizes):
            sent.extend(parts)
            return list(parts)

    asked = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *given, **named: (asked.append((id(self), given)), to(self, "cpu"))[1])
    layout = RecordLayout(image_size=4, max_length=8)
    buffer = HardBuffer(layout, 5, 2, 0, 1)
    records = layout.empty(2)
    records["loss"] = [1.0, 2.0]
    buffer.mine(records, np.array([True, True]))
    buffer.merge(Noted(device=DEVICE), 0.0, 0, 0)
    assert buffer.size == 2 and len(sent) == 2 and [given for _, given in asked] == [(DEVICE,)] * 2


def test_what_a_checkpoint_keeps_is_brought_to_the_host(monkeypatch, home, tmp_path):
    model = load("janus", home)
    objective = game(model, monkeypatch, adversary=ADVERSARIES["perturber"])
    moved = []
    to = torch.Tensor.to

    def moves(tensor, *where, **how):
        if where == ("cpu",):
            moved.append(tensor.shape)
        return to(tensor, *where, **how)

    monkeypatch.setattr(torch.Tensor, "to", moves)
    for file in objective.pending():
        file.write(tmp_path)
    with safe_open(tmp_path / "unigame.safetensors", "pt") as file:
        assert len(moved) == len(list(file.keys())) > 0  # noqa: SIM118
