"""Every pass of every family on a device other than the host, in both precisions: nothing waits, nothing stays on the host."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.attention.queries import Queries
from megaunigame.models.causal import model as causal
from megaunigame.models.causal.model import CausalModel
from megaunigame.objectives.aia.objective import AIA
from megaunigame.objectives.aia.settings import Settings
from megaunigame.objectives.player import Context
from megaunigame.step.codes import PictureCodes
from megaunigame.step.inputs import put_rows, take_rows
from megaunigame.step.losses import LossTerms
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.devices.fake_device import DEVICE, load, no_waiting, on_host, transfer
from tests.devices.rows import PLAN, collated, picture
from tests.models.shared import generate, understand
from tests.worlds import OneRank

PRECISIONS = [torch.float32, torch.bfloat16]


def gradients_arrive(model: CausalModel, device: torch.device) -> None:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) > 10 and all(gradient.device == device for gradient in found)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("independent", [False, True], ids=["", "independent"])
def test_forward_and_backward_of_the_learner(monkeypatch, home, family, dtype, independent):
    model = load(family, home)
    rows = collated(model, independent)
    with no_waiting(monkeypatch):
        transfer(model, DEVICE, dtype)
        inputs = {name: given.to(DEVICE) for name, given in rows.items()}
        losses = [model(given).loss_sum for name, given in inputs.items()]
        put = put_rows(inputs[UNDERSTAND], slice(2, 3), take_rows(inputs[UNDERSTAND], slice(0, 1)))
        losses.append(model(put).loss_sum)
        assert [loss.shape for loss in losses] == [(4,), (3,), (4,)] and {loss.device for loss in losses} == {DEVICE}
        torch.cat(losses).sum().backward()
        gradients_arrive(model, DEVICE)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_rows_with_and_without_stored_codes(monkeypatch, home, family, dtype):
    model = load(family, home)
    if not model.has_codes:
        pytest.skip("its pictures are not codes")
    model.use_stored_codes(partial=False)
    side = model.processor.image_size
    grids = {(g, side): torch.ones(1, 2, 2, dtype=torch.long) for g in ("fit", "crop")}
    codes = PictureCodes(model.tokenizer_identity(), 32, grids)
    own = {"target_codes": codes, "source_codes": codes}
    drawn = GenerateRow("a ball", picture(0), picture(0), **own), GenerateRow("no", picture(1), picture(1)), None
    asked = UnderstandRow([picture(2)], [("what ?", "a ball")], codes=codes), UnderstandRow([picture(3)], [("why ?", "so")])
    rows = {GENERATE: generate(model, *drawn), UNDERSTAND: understand(model, *asked)}
    with no_waiting(monkeypatch):
        transfer(model, DEVICE, dtype)
        inputs = {name: given.to(DEVICE) for name, given in rows.items()}
        assert inputs[GENERATE].target_codes.device == DEVICE and inputs[GENERATE].target_coded == [True, False, True]
        put = put_rows(inputs[UNDERSTAND], slice(1, 2), take_rows(inputs[UNDERSTAND], slice(0, 1)))
        losses = [model(given).loss_sum for given in (*inputs.values(), put)]
        torch.cat(losses).sum().backward()
        gradients_arrive(model, DEVICE)


def drawn_on_the_host(drawn_tokens):
    """`drawn_tokens`, whose places are drawn and read on the host: fake tensors have nothing to read."""

    def drawn(places, rows, most, device):
        found = on_host(drawn_tokens)(places, rows, most, torch.device("cpu"))
        return Queries(*(each.to(device, non_blocking=True) for each in found[:2]), found.reach)

    return drawn


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("queries", [0, 2])
def test_taps_and_their_loss_terms(monkeypatch, home, family, dtype, queries):
    """With gradient checkpointing: the backward measures again."""
    model, world = load(family, home, checkpointing=True), OneRank(device=DEVICE)
    objective = AIA(Settings(queries=queries, targets="relative", terms=["u", "g"]))
    rows = collated(model)
    monkeypatch.setattr(causal, "drawn_tokens", drawn_on_the_host(causal.drawn_tokens))
    with no_waiting(monkeypatch):
        transfer(model, DEVICE, dtype)
        player = objective.player(Context(model, None, PLAN, world, 0))
        terms = LossTerms(PLAN, player.terms, (), world)
        total = torch.zeros(len(terms.names), device=DEVICE)
        for name, given in rows.items():
            inputs = dataclasses.replace(given.to(DEVICE), taps=player.taps(name))
            output = model(inputs)
            assert output.attention.keys.device == DEVICE
            total = total + terms.sums(inputs, output)
        total.sum().backward()
        gradients_arrive(model, DEVICE)


def test_counts_of_a_step_are_taken_on_the_host(home, family):
    model = load(family, home)
    terms = LossTerms(PLAN, [], (), OneRank())
    rows = collated(model)
    counted = terms.counts(Step(0, 1.0, [MicroStep(0, PLAN, rows)], 1.0))
    assert counted.tolist() == [rows[name].counts.sum() for name in (UNDERSTAND, GENERATE)]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_forward_on_cuda(monkeypatch, home, family, dtype):
    device = torch.device("cuda", 0)
    model = load(family, home)
    rows = collated(model)
    with no_waiting(monkeypatch, device):
        transfer(model, device, dtype)
        for given in rows.values():
            assert model(given.to(device)).loss_sum.device == device
            assert model(given.to(device), predict=True).loss_sum.device == device
