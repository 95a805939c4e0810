"""Candidates in one process: what is mined, and how it is replayed."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.game import HARD
from megaunigame.objectives.unigame.pool import PATIENCE
from megaunigame.replay.records import RecordLayout
from megaunigame.replay.rows import pack, to_records, to_rows
from megaunigame.step.inputs import IGNORE, UnderstandInputs
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import UNDERSTAND
from tests.objectives.played_by_hand import ADVERSARIES, CLIP, Played

# Candidates


def test_a_candidate_whose_loss_is_not_finite_is_dropped_and_counted(play):
    game = play()
    mine = game.pool.mine

    def spoiled(attack: Any, attacked: Any, pictures: Tensor, losses: Tensor, *rest: Any) -> None:
        losses = losses.clone()
        if game.number == 0:
            losses[0, 1] = math.nan
        mine(attack, attacked, pictures, losses, *rest)

    game.pool.mine = spoiled
    metrics = game.step()
    assert metrics[names.BUFFER_NOT_FINITE] == 1
    assert metrics[names.BUFFER_SIZE] == 2 and game.pool.merged.candidates == 2
    assert np.isfinite(game.pool.buffer.losses).all()
    assert math.isfinite(metrics[names.LOSS_ADVERSARIAL])
    assert game.step()[names.BUFFER_NOT_FINITE] == 0


def test_a_loss_that_is_not_finite_spares_the_adversary(play, caplog):
    game = play(adversary=ADVERSARIES["perturber"])
    before = [p.detach().clone() for p in game.unigame.parameters]
    understand = game.model.understand

    def spoiled(inputs: UnderstandInputs, predict: bool = False):
        output = understand(inputs, predict)
        if len(inputs.tokens) == 3:  # the attacked rows, not the learner's four
            factor = torch.tensor([1.0, math.nan, 1.0])
            output = output._replace(loss_sum=output.loss_sum * factor)
        return output

    game.model.understand = spoiled
    with caplog.at_level(logging.WARNING):
        metrics = game.step()
    assert metrics[names.BUFFER_NOT_FINITE] == 1 and not math.isfinite(metrics[names.ADVERSARY_GRAD_NORM])
    assert "gradient of step 1 is not finite" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(game.unigame.parameters, before, strict=True))


def test_one_gradient_that_is_not_finite_does_not_freeze_the_adversary_for_good(play):
    """In one backward with the learner, whose gradients add to those of the last step."""
    game = play(mode="simultaneous", adversary=ADVERSARIES["perturber"])
    parameter, moved = game.unigame.parameters[-1], []
    spoil = parameter.register_hook(lambda gradient: gradient * math.nan)
    for step in range(3):
        before = parameter.detach().clone()
        norm = game.step()[names.ADVERSARY_GRAD_NORM]
        moved.append((math.isfinite(norm), not torch.equal(parameter, before)))
        if step == 0:
            spoil.remove()
    assert moved == [(False, False), (True, True), (True, True)]


def test_a_filter_that_rejects_everything_is_told_of(play, caplog):
    game = play(clip={"model": "tiny-random", "tau": 1.0})
    with caplog.at_level(logging.WARNING):
        for _ in range(PATIENCE - 1):
            metrics = game.step()
        assert "no candidate" not in caplog.text
        metrics = game.step()
    assert "no candidate in the last 3 merges" in caplog.text and "tau 1)" in caplog.text
    assert "objectives.unigame.clip.tau" in caplog.text and "eps_max" in caplog.text
    assert metrics[names.BUFFER_ACCEPT_RATE] == 0 and metrics[names.BUFFER_SIZE] == 0
    assert names.BUFFER_THRESHOLD not in metrics


def test_the_warning_waits_again_after_a_candidate(play, caplog):
    game = play(clip={"model": "tiny-random", "tau": 1.0})
    with caplog.at_level(logging.WARNING):
        for tau in (1.0, 1.0, -1.0, 1.0, 1.0):
            game.unigame.clip.tau = tau
            game.step()
    assert "no candidate" not in caplog.text


def test_without_a_filter_the_warning_does_not_blame_it(play, caplog):
    game = play("texts")
    with caplog.at_level(logging.WARNING):
        for _ in range(PATIENCE):
            game.step()
    assert "no attacked picture had an answer" in caplog.text and "tau" not in caplog.text


@torch.no_grad()
def middle_similarity(game: Played, micro_steps: int) -> float:
    """Of the candidates of the first step."""
    found = []
    for micro in range(micro_steps):
        attack, path, drawn = game.attack(micro), game.unigame.path, game.unigame._generator
        attacked = path.attack(game.model, attack, drawn("attack", 0, micro))
        pictures, _ = path.harvest(game.model, attack, attacked, attack.question.counts, drawn("harvest", 0, micro))
        found += [game.pool.similarity(attack, shown) for shown in pictures]
    return float(torch.cat(found).median())


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "simultaneous"}, {"path": "sampled", "sampling": {"candidates": 2}}], ids=str
)
def test_what_is_mined_is_plausible_and_hard(play, settings):
    """Similarity at or above tau AND loss at or above the percentile of the plausible ones."""
    game = play(**settings, **CLIP, accumulation=3, buffer={"percentile": 60.0})
    unigame = game.unigame
    unigame.clip.tau = middle_similarity(game, 3)  # half will pass
    metrics = game.step()

    similarity, losses, real = [], [], []
    for attack, _, pictures, sums, *_ in game.offered:
        for shown, of_rows in zip(pictures, sums, strict=True):
            similarity += unigame.clip.similarity(shown, sources=attack.redraw.targets).tolist()
            losses += (of_rows / attack.question.counts.clamp(min=1)).tolist()
            real += (attack.question.counts > 0).tolist()
    plausible = np.array(similarity) >= unigame.clip.tau
    assert all(real) and 1 < plausible.sum() < len(plausible), "the filter decides nothing"
    threshold = np.percentile(np.array(losses)[plausible], 60.0)
    kept = plausible & (np.array(losses) >= threshold)
    assert 0 < kept.sum() < plausible.sum(), "the percentile decides nothing"
    buffer = game.pool.buffer
    records = buffer.records(np.arange(buffer.size))
    np.testing.assert_allclose(records["loss"], sorted(np.array(losses)[kept], reverse=True), rtol=1e-6)
    assert (records["similarity"] >= unigame.clip.tau - 1e-6).all()
    assert metrics[names.BUFFER_THRESHOLD] == pytest.approx(threshold, rel=1e-6)
    assert metrics[names.BUFFER_ACCEPT_RATE] == pytest.approx(plausible.mean())
    assert metrics[names.BUFFER_SIMILARITY] == pytest.approx(np.mean(similarity), rel=1e-5)


def test_an_adversary_metric_is_a_mean_over_attacked_pictures(play):
    game = play(adversary=ADVERSARIES["noise"])
    metrics = game.step()
    ((attack, attacked, _, losses, *_),) = game.offered
    assert metrics[names.LOSS_ADVERSARIAL] == pytest.approx(float(losses.sum() / attack.question.counts.sum()), rel=1e-5)
    assert metrics[names.ADVERSARY_DELTA] == pytest.approx(float(attacked.delta.norm(dim=-1).mean()), rel=1e-5)
    assert metrics[names.ADVERSARY_CHANGED_CODES] == pytest.approx(float(attacked.changed.mean()), rel=1e-5)


# Replay


@pytest.mark.parametrize("path", ["decoder", "embedding", "sampled"])
def test_replay_refreshes_the_stored_losses(play, path):
    game = play(path=path, accumulation=2, buffer={"merge_every": 2})
    game.step(), game.step()
    buffer, at = game.pool.buffer, game.plan.rows_at(UNDERSTAND, HARD)
    before = buffer.losses.copy()
    seen: list[Tensor] = []
    metrics = game.step(lambda inputs, output: seen.append((output.loss_sum / inputs.counts).detach()[at]))
    drawn = np.concatenate(game.unigame.round.drawn)
    assert metrics[names.BUFFER_REPLAYED] == len(drawn) == 4 == len(set(drawn.tolist()))
    after = buffer.losses  # no merge in the third step
    np.testing.assert_allclose(after[drawn], torch.cat(seen).numpy(), rtol=1e-6)
    others = np.setdiff1d(np.arange(buffer.size), drawn)
    assert (after[others] == before[others]).all() and (after[drawn] != before[drawn]).any()


def test_hard_places_without_a_record_stay_dummies(play):
    """Two records for four places: the rest counts nothing, and no loss of theirs is noted."""
    game = play(accumulation=2, buffer={"capacity": 3})
    at = game.plan.rows_at(UNDERSTAND, HARD)
    game.step()
    counts: list[list[bool]] = []
    metrics = game.step(lambda inputs, output: counts.append((inputs.counts[at] > 0).tolist()))
    assert counts == [[True, True], [True, False]] and metrics[names.BUFFER_REPLAYED] == 3


@pytest.mark.parametrize("independent", [False, True])
def test_mined_questions_come_back_as_they_were(play, independent):
    game = play(turns=0, independent=independent, attack_rows=4)
    game.step()
    ((attack, _, pictures, _, *_),) = game.offered
    question, buffer = attack.question, game.pool.buffer
    assert buffer.size == 4 and (question.segments is not None) == independent
    rows = game.pool.rows(np.arange(buffer.size))
    order = [question.keys.index(key) for key in rows.keys]
    assert sorted(order) == [0, 1, 2, 3]
    width = rows.tokens.shape[1]
    used = question.attention[order]
    assert not used[:, width:].any() and torch.equal(rows.attention, used[:, :width])
    for name in ("tokens", "labels", "segments", "image_positions"):
        stored, mined = getattr(rows, name), getattr(question, name)
        if mined is None:
            assert stored is None
            continue
        assert torch.equal(stored[rows.attention], mined[order][used]), name
    assert (rows.labels[~rows.attention] == IGNORE).all() and not rows.image_positions[~rows.attention].any()
    assert torch.equal(rows.counts, question.counts[order]) and rows.image_valid.all()
    expected = game.model.as_source(pictures[0][order])
    torch.testing.assert_close(rows.images[:, 0], expected, rtol=0, atol=1 / 255 + 1e-5)


def test_replayed_rows_give_the_loss_of_the_mined_ones(play):
    game = play(turns=0, attack_rows=4, independent=True)
    game.step()
    ((attack, _, pictures, _, *_),) = game.offered
    rows = game.pool.rows(np.arange(4))
    question = attack.question
    question.images = game.model.as_source(((pictures[0] + 1) * 127.5).round() / 127.5 - 1).unsqueeze(1)  # as stored
    with torch.no_grad():
        mined, replayed = (game.model(inputs).loss_sum for inputs in (question, rows))
    order = [question.keys.index(key) for key in rows.keys]
    torch.testing.assert_close(replayed, mined[order], rtol=1e-5, atol=1e-5)


def test_rows_as_long_as_a_row_can_be_are_stored(play):
    """Sequences are padded to a multiple of eight, which may exceed `max_length`."""
    game = play(max_length=53, turns=0)
    question = game.attack().question
    assert question.attention.sum(1).max() == 53 and question.tokens.shape[1] == 56
    game.step()
    assert game.pool.buffer.size == 3


def test_rows_keep_every_similarity_and_step(play):
    game = play()
    layout, attack = game.pool.buffer.layout, game.attack()
    losses, similarity = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.25, 0.5, -0.75])
    packed = pack(attack.redraw.targets, losses, similarity, torch.tensor([True, False, True]), torch.zeros(3))
    records, accepted = to_records(layout, attack.question, packed, step=17)
    assert accepted.tolist() == [True, False, True]
    assert records["loss"].tolist() == losses.tolist() and records["similarity"].tolist() == similarity.tolist()
    assert records["step"].tolist() == [17] * 3 and records["length"].tolist() == attack.question.attention.sum(1).tolist()
    targets = game.model.as_source(attack.redraw.targets)
    torch.testing.assert_close(to_rows(game.model, records).images[:, 0], targets, rtol=0, atol=1e-5)  # bytes to begin with


def test_a_full_record_may_have_been_cut_and_does_not_count_as_intact(play):
    game = play()
    attack, length = game.attack(), int(game.attack().question.attention.sum(1)[1])
    layout = RecordLayout(game.pool.buffer.layout.image_size, length)
    packed = pack(attack.redraw.targets, *torch.ones(4, 3))
    records, _ = to_records(layout, attack.question, packed, step=0)
    records["length"] = [length - 1, length, 3]
    rows = to_rows(game.model, records)
    assert rows.intact.tolist() == [True, False, True] and not rows.front_padding
    assert torch.equal(rows.label_positions, label_positions(rows.labels))
