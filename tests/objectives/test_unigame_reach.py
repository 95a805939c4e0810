"""The length of perturbations: set by the share of codes that they flip, and the adversary's own pace and pictures."""

from __future__ import annotations

import logging

import pytest
import torch

from megaunigame.adversary.noise import Noise
from megaunigame.adversary.perturber import Perturber
from megaunigame.adversary.pgd import Pgd
from megaunigame.models.janus import Janus
from megaunigame.models.openuni import OpenUni
from megaunigame.models.show_o import ShowO
from megaunigame.objectives.unigame import UniGame, names
from megaunigame.objectives.unigame.reach import PATIENCE, SMALLEST, Reach
from megaunigame.objectives.unigame.settings import ControllerSettings, Settings
from megaunigame.settings import fill
from megaunigame.step.micro import Step
from megaunigame.step.requests import StepPlan
from tests.objectives.played_by_hand import ADVERSARIES
from tests.refusals import refused

ROOT = "objectives.unigame"


def reach(adversary=None, **settings):
    adversary = adversary or Noise(Noise.Config(eps_max=1.0), 4)
    return Reach(ControllerSettings(**settings), adversary, watched=True)


# The controller


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_eps_ends_where_the_wanted_share_is_flipped(exponent):
    """On a model whose flips grow with a power of eps."""
    controlled = reach(flipped=0.05, rate=0.3)
    for _ in range(60):
        controlled.note(min(1.0, 0.8 * controlled.adversary.limit**exponent), is_main=True)
    assert 0.8 * controlled.adversary.limit**exponent == pytest.approx(0.05, rel=0.02)


def test_eps_stays_within_the_limits_of_the_adversary():
    perturber = Perturber(Perturber.Config(eps_max=0.4, eps_min=0.1, eps_init=0.3, hidden=2), 4)
    controlled = reach(perturber)
    assert perturber.held == pytest.approx(0.325)
    for flipped, limit in ((0.0, 0.4), (1.0, 0.1)):
        for _ in range(40):
            controlled.note(flipped, is_main=True)
        assert perturber.eps.item() == pytest.approx(limit)
    noise = reach()
    for _ in range(200):
        noise.note(1.0, is_main=True)
    assert noise.adversary.held == SMALLEST, "0 has no way back"


@pytest.mark.parametrize("kind", [Noise, Pgd, Perturber])
def test_every_adversary_moves_tokens_by_the_held_length(kind):
    adversary = kind(kind.Config(eps_max=1.0, **({"hidden": 4} if kind is Perturber else {})), 8)
    adversary.held = 0.25
    tokens = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    delta = adversary.perturb(tokens, lambda delta: (delta * tokens).sum((1, 2)), torch.Generator().manual_seed(0))
    assert adversary.eps.item() == 0.25
    assert delta.norm(dim=-1).max().item() <= 0.25 + 1e-6
    assert kind is Pgd or torch.allclose(delta.norm(dim=-1), torch.tensor(0.25))


@pytest.mark.parametrize("mode", ["alternating", "simultaneous"])
def test_a_controlled_game_is_resumed_exactly(play, tmp_path, mode):
    settings = {"mode": mode, "adversary": ADVERSARIES["perturber"], "controller": {"flipped": 0.1, "rate": 0.5}}
    games = [play(**settings) for _ in range(2)]
    lengths = [games[0].step()[names.ADVERSARY_EPS] for _ in range(4)]
    assert len({*lengths}) > 1, "nothing was controlled"
    for file in games[0].unigame.pending():
        file.write(tmp_path)
    games[1].unigame.load(tmp_path)
    games[1].number = games[0].number
    assert games[1].unigame.adversary.held == games[0].unigame.adversary.held
    for _ in range(2):
        assert games[0].step() == games[1].step()


def test_a_family_that_reads_a_part_of_its_picture_redraws_in_a_separate_pass():
    game = UniGame(fill(Settings, {"redraw": "pixel"}, ROOT))
    with refused("objectives.unigame.redraw=pixel", "'show_o' reads a part", "Type objectives.unigame.redraw=own"):
        game.check_family(ShowO, "show_o", "", StepPlan(()))
    game.check_family(Janus, "janus", "", StepPlan(()))
    UniGame(fill(Settings, {}, ROOT)).check_family(ShowO, "show_o", "", StepPlan(()))


def test_a_family_without_codes_is_refused():
    game = UniGame(fill(Settings, {"controller": {"flipped": 0.05}}, ROOT))
    with refused(
        "'openuni' draws no codes", "objectives.unigame.controller", "emu3, emu3_5, janus", "controller=null", "eps_max"
    ):
        game.check_family(OpenUni, "openuni", "", StepPlan(()))
    game.check_family(Janus, "janus", "", StepPlan(()))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"controller": {"flipped": 0.0}}, ["controller.flipped=0", "Type objectives.unigame.controller.flipped=0.05"]),
        ({"controller": {"flipped": 1.0}}, ["objectives.unigame.controller.flipped", "[0, 1)", "got 1.0"]),
        ({"controller": {"rate": 0.0}}, ["objectives.unigame.controller.rate", "greater than 0"]),
        ({"controller": {}, "path": "embedding"}, ["controller", "path=embedding", "Type objectives.unigame.path=decoder"]),
        ({"controller": {}, "penalties": {"gate": 1.0}}, ["penalties.gate=1.0", "Type objectives.unigame.penalties.gate=0"]),
        ({"schedule": "constnat"}, ["objectives.unigame.schedule", "'constant'", "follow"]),
        ({"buffer": {"draw": "pop"}}, ["objectives.unigame.buffer.draw", "remove", "keep"]),
        ({"buffer": {"hardness": "gaps"}}, ["objectives.unigame.buffer.hardness", "Did you mean 'gap'"]),
        ({"buffer": {"topk": 2}}, ["buffer.topk=2", "path=sampled", "Type objectives.unigame.buffer.topk=0"]),
        ({"attack_on": "clean", "clean_rows": 3}, ["attack_rows=4", "3 clean rows", "Type objectives.unigame.attack_rows=3"]),
        ({"attack_on": "clean", "redraw": "pixel"}, ["redraw=pixel", "Type objectives.unigame.attack_on=stream"]),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other(settings, parts):
    with refused(*parts):
        UniGame(fill(Settings, settings, ROOT))


# The warning


def test_attacks_that_change_nothing_are_told_of(play, caplog):
    game = play(adversary={"kind": "noise", "eps_max": 1e-7})
    with caplog.at_level(logging.WARNING):
        for _ in range(PATIENCE - 1):
            game.step()
        assert "changed fewer than" not in caplog.text
        assert game.step()[names.ADVERSARY_CHANGED_CODES] < 1e-3
    assert "The last 20 attacks changed fewer than 0.001 of the codes" in caplog.text
    assert "objectives.unigame.adversary.eps_max" in caplog.text and "budget=relative" in caplog.text


def test_the_warning_counts_over_a_restart_and_not_where_nothing_can_be_flipped(caplog):
    first, second = reach(), reach()
    for _ in range(PATIENCE - 1):
        first.note(0.0, is_main=True)
    second.load_state_dict(first.state_dict())
    assert "changed fewer" not in caplog.text
    second.note(0.0, is_main=True)
    assert "changed fewer" in caplog.text
    caplog.clear()
    unwatched = Reach(None, Noise(Noise.Config(), 4), watched=False)
    for _ in range(2 * PATIENCE):
        unwatched.note(0.0, is_main=True)
    assert not caplog.text and unwatched.adversary.held is None


# Pace, pictures, penalties


def test_the_adversary_has_its_own_rate_or_follows(play):
    late = Step(9, 1e-4, [], peak_lr=1e-3)
    assert play(ratio=10.0).unigame._lr(late) == pytest.approx(1e-2)
    assert play(ratio=10.0, schedule="follow").unigame._lr(late) == pytest.approx(1e-3)


def test_the_clean_rows_are_attacked(play):
    game = play(attack_on="clean", clean_rows=3, attack_rows=3)
    batch = game.micro_batches[0]
    clean = batch.inputs["understand"].keys[game.plan.rows_at("understand", "clean")]
    attack = game.attack()
    assert attack.question.keys == attack.redraw.keys == clean and (attack.question.counts > 0).all()
    assert len({*clean}) == 3
    game.step()
    assert game.pool.buffer.size == 3
    assert play().attack().question.keys != play().micro_batches[0].inputs["understand"].keys[:3]


def test_the_gate_is_what_is_penalized(play):
    """sigmoid(gate)^2 as released, not (eps / eps_max)^2, which differ where eps_min is above 0."""
    adversary = {"kind": "perturber", "hidden": 4, "eps_max": 0.4, "eps_min": 0.2}
    game = play(adversary=adversary, penalties={"l2": 0.0, "tv": 0.0, "gate": 1.0}).unigame
    attack = play(adversary=adversary).attack()
    attacked = game.perturbed(attack, 0, 0, None)
    expected = game.adversary.gate.sigmoid().square().item()
    assert game.penalties(attack, attacked).tolist() == pytest.approx([expected] * 3)
    assert expected != pytest.approx((game.adversary.eps.item() / 0.4) ** 2, rel=0.1)
