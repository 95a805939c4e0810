"""What the adversary descends, what the learner weighs, and where the game draws: against plain arithmetic, in one process."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megaunigame.models.janus import Janus
from megaunigame.objectives.player import Context
from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.game import HARD, PURPOSES, Game
from megaunigame.objectives.unigame.reversal import reverse_gradient
from megaunigame.planning.pretended_world import PretendedWorld
from megaunigame.replay.hard_buffer import MergeReport
from megaunigame.replay.rows import pack
from megaunigame.step.inputs import with_images
from tests.objectives.played_by_hand import ADVERSARIES, SEED, Played, shards
from tests.worlds import OneRank

SMALL = {"kind": "perturber", "hidden": 4, "budget": "relative", "eps_max": 0.5}
PENALTIES = {"l2": 3.0, "tv": 5.0, "gate": 0.25, "clip": 0.0}


@pytest.fixture
def mixed(home, tmp_path):
    """A game on samples of which some have no picture, so that some attacked rows are dummies."""
    numbers = [number for n in range(1, 13) for number in (n, 5 * n) if number % 7]
    shards(tmp_path / "mixed", numbers)

    def play(**settings):
        return Played(Janus.load(home / "model", max_length=96).train(), tmp_path / "mixed", **settings)

    return play


def on_ranks_like_this(game, size):
    """`size` ranks that all have what this one has."""
    game.unigame.context = dataclasses.replace(game.unigame.context, data_ranks=OneRank(size))


# Randomness


def test_every_attack_draws_from_a_stream_of_its_place_and_purpose():
    def drawn(seed=1, rank=0, step=0, micro=0, purpose="attack"):
        ranks = SimpleNamespace(rank=rank, device=torch.device("cpu"))
        game = SimpleNamespace(context=SimpleNamespace(seed=seed, data_ranks=ranks))
        return torch.rand(3, generator=Game._generator(game, purpose, step, micro)).tolist()

    places = [
        {},
        {"seed": 2},
        {"rank": 1},
        {"step": 1},
        {"micro": 1},
        *({"purpose": name} for name in PURPOSES if name != "attack"),
    ]
    draws = {tuple(drawn(**place)) for place in places}
    assert len(draws) == len(places) and tuple(drawn()) in draws


def test_ranks_and_steps_replay_other_records_of_equal_buffers():
    def drawn(seed=1, rank=0, step=0):
        seen = []
        pool = SimpleNamespace(draw=lambda rows, micro_steps, rng: (seen.append(rng.random()), [np.zeros(0)])[1])
        context = SimpleNamespace(seed=seed, data_ranks=SimpleNamespace(rank=rank))
        game = SimpleNamespace(config=SimpleNamespace(hard_rows=2), context=context, pool=pool)
        Game._put_hard_rows(game, SimpleNamespace(number=step, micro_steps=[None]))
        return seen[0]

    assert len({drawn(), drawn(seed=2), drawn(rank=1), drawn(step=1)}) == 4 and drawn() == drawn()


def test_all_ranks_begin_with_the_same_adversary(play):
    game = play(adversary=SMALL)
    other = PretendedWorld(rank=1, size=2, local_rank=1, device=torch.device("cpu"))
    context = Context(game.model, game.unigame.context.aside, game.plan, other, SEED)
    torch.rand(5)  # what a rank has drawn before does not matter
    again = game.objective.player(context)
    assert all(torch.equal(p, q) for p, q in zip(game.unigame.parameters, again.parameters, strict=True))


# The adversary's goal


def penalty_by_hand(delta, gate):
    rows = []
    for tokens in delta:
        neighbors = torch.stack([tokens[n + 1] - tokens[n] for n in range(len(tokens) - 1)])
        rows.append(PENALTIES["l2"] * (tokens**2).mean() + PENALTIES["tv"] * (neighbors**2).mean())
    return torch.stack(rows) + PENALTIES["gate"] * torch.sigmoid(gate) ** 2


def test_the_adversary_descends_penalties_less_the_weighted_loss(mixed):
    """Over two micro-steps, with rows that have no picture: one mean over all real rows, and over all their answer tokens."""
    game = mixed(adversary=SMALL, penalties=PENALTIES, gain=7.0, accumulation=2)
    unigame, given = game.unigame, []
    attacks = [game.attack(micro) for micro in range(2)]
    pictures = sum(int((attack.question.counts > 0).sum()) for attack in attacks)
    tokens = sum(float(attack.question.counts.sum()) for attack in attacks)
    assert 0 < pictures < 6, "no dummy among the rows"
    goal = torch.zeros(())
    for micro, attack in enumerate(attacks):
        attacked = unigame.perturbed(attack, 0, micro, None)
        real = attack.question.counts > 0
        penalty = penalty_by_hand(attacked.delta, unigame.adversary.gate)
        loss = game.model(attacked.question).loss_sum
        goal = goal + penalty[real].sum() / pictures - 7.0 * loss[real].sum() / tokens
    wanted = torch.autograd.grad(goal, unigame.parameters)
    unigame.optimizer.step = lambda gradients, lr, ranks: (given.extend(g.clone() for g in gradients), 0.0)[1]
    game.step()
    for found, expected in zip(given, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()) + 1e-7)


def test_pictures_below_the_threshold_of_clip_are_penalized(play):
    game = play(clip={"model": "tiny-random", "tau": 0.5}, adversary=SMALL, penalties={"l2": 0.0, "tv": 0.0, "clip": 2.0})
    similarity = torch.tensor([0.2, 0.5, 0.9])
    game.pool.similarity = lambda attack, pictures: similarity
    attacked = SimpleNamespace(delta=torch.zeros(3, 4, 8), pictures=None)
    assert game.unigame.penalties(game.attack(), attacked).tolist() == pytest.approx([0.6, 0.0, 0.0])


def test_means_over_attacked_pictures_leave_dummies_out(mixed):
    game = mixed(adversary=ADVERSARIES["noise"])
    metrics = game.step()
    ((attack, attacked, *_),) = game.offered
    real = attack.question.counts > 0
    assert 0 < int(real.sum()) < 3
    assert metrics[names.ADVERSARY_DELTA] == pytest.approx(float(attacked.delta.norm(dim=-1).mean(1)[real].mean()), rel=1e-5)


# Both players in one backward


def test_a_reversed_gradient_is_that_of_the_learner_times_minus_the_factor(play):
    question = play(path="embedding").attack().question
    images = question.images.clone().requires_grad_()
    delta = torch.randn(3, 1, 2, 5).requires_grad_()
    turned = reverse_gradient(dataclasses.replace(question, images=images, visual_delta=delta), 3.0)
    assert torch.equal(turned.images, images) and torch.equal(turned.visual_delta, delta)
    (turned.images.sum() + 2 * turned.visual_delta.sum()).backward()
    assert torch.equal(images.grad, torch.full_like(images, -3.0)) and torch.equal(delta.grad, torch.full_like(delta, -6.0))


def test_the_gradient_of_a_joint_backward_is_divided_by_the_ranks(play, monkeypatch):
    """The learner's loss was multiplied by their number, because the engine averages; the adversary's optimizer sums."""
    game, seen = play(mode="simultaneous", adversary=SMALL), []
    on_ranks_like_this(game, 4)
    monkeypatch.setattr(Game, "after_learner", lambda self, step: {})
    monkeypatch.setattr(game.unigame, "update", lambda step: seen.extend(game.unigame.round.gradients))
    for parameter in game.unigame.parameters:
        parameter.grad = torch.full_like(parameter, 8.0)
    game.unigame.parameters[0].grad = None
    game.unigame.round.attacks = True
    game.unigame.after_learner(None)
    assert not seen[0].any() and all((found == 2.0).all() for found in seen[1:]) and len(seen) == len(game.unigame.parameters)


# The learner's hard rows


@pytest.mark.parametrize("size", [1, 2])
def test_the_weight_of_hard_rows_is_the_share_of_them_that_is_there(play, size):
    """Three records for four places, on every rank."""
    game = play(accumulation=2, buffer={"capacity": 3})
    game.step()
    on_ranks_like_this(game, size)
    game.step()
    assert game.factors[HARD] == pytest.approx(3 / 4)


def test_no_gradient_of_replayed_rows_reaches_the_adversary(play):
    game = play(path="embedding", adversary=SMALL)
    question = game.attack().question
    rows = game.unigame.path.replay(game.model, question, torch.Generator().manual_seed(0))
    assert rows.visual_delta is not None and not rows.visual_delta.requires_grad and rows.visual_delta.any()


# Candidates


def test_candidates_are_offered_row_by_row(play):
    """As a single rank would have mined them, so that what is kept does not depend on the number of ranks."""
    game = play(path="sampled", sampling={"candidates": 2})
    attack, offered = game.attack(), []
    ones = torch.ones(3)
    packed = [pack(attack.redraw.targets, torch.tensor([0.0, 10.0, 20.0]) + k, ones, ones, 0 * ones) for k in range(2)]
    game.pool.mined = [(attack.question, torch.stack(packed, 1), 0)]
    game.pool.buffer.mine = lambda records, accepted: (offered.extend(records["loss"].tolist()), 0)[1]
    game.pool.collect()
    assert offered == [0, 1, 10, 11, 20, 21]


def test_every_candidate_is_asked_about_itself(play):
    game = play(path="sampled", sampling={"candidates": 2}, adversary=ADVERSARIES["noise"])
    game.step()
    ((attack, _, pictures, losses, *_),) = game.offered
    assert not torch.equal(pictures[0], pictures[1])
    for shown, found in zip(pictures, losses, strict=True):
        with torch.no_grad():
            asked = game.model(with_images(attack.question, game.model.as_source(shown).unsqueeze(1)))
        torch.testing.assert_close(found, asked.loss_sum, rtol=1e-5, atol=1e-5)


# Checkpoints


def test_counts_of_the_pool_and_moments_of_the_adversary_come_back(play, tmp_path):
    game, again = (play(adversary=SMALL, buffer={"merge_every": 100}) for _ in range(2))
    game.step()
    game.pool.empty_merges, game.pool.distinct = 2, 9
    game.pool.merged = MergeReport(1.5, 7, 6, 5, 4, 3, 2, 1)
    for file in game.unigame.pending():
        file.write(tmp_path)
    again.unigame.load(tmp_path)
    assert (again.pool.empty_merges, again.pool.distinct) == (2, 9)
    assert dataclasses.astuple(again.pool.merged) == (1.5, 7, 6, 5, 4, 3, 2, 1)
    kept, found = game.unigame.optimizer.optimizer.state, again.unigame.optimizer.optimizer.state
    for before, after in zip(game.unigame.parameters, again.unigame.parameters, strict=True):
        assert torch.equal(before, after) and kept[before]["exp_avg_sq"].any()
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(kept[before][moment], found[after][moment]), moment
