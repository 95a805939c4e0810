"""How hard a picture is, whose label is right, and what is replayed how often."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.game import HARD
from megaunigame.objectives.unigame.pool import hardest_of_each
from megaunigame.objectives.unigame.undisturbed import Undisturbed
from megaunigame.step.requests import UNDERSTAND
from tests.objectives.played_by_hand import ADVERSARIES, LM, calls_of

GAP = {"hardness": "gap"}
STRONG = {"adversary": {**ADVERSARIES["noise"], "eps_max": 1.0}}

# The undisturbed picture


def asked(game, question):
    """Loss and label check of a question, in a separate pass."""
    with torch.no_grad():
        output = game.model(question, predict=True)
    right = (output.predictions == question.labels) | (question.labels == -100)
    return output.loss_sum, right.all(1)


@pytest.mark.parametrize("mode", ["alternating", "simultaneous"])
@pytest.mark.parametrize("path", ["decoder", "embedding"])
def test_the_gap_is_to_the_undisturbed_picture(play, mode, path):
    game = play(mode=mode, path=path, **STRONG, buffer=GAP)
    metrics = game.step()
    ((attack, attacked, _, losses, *_, undisturbed),) = game.offered
    with torch.no_grad():
        plain, right = asked(game, game.unigame.path.plain(game.model, attack, attacked))
        shown, _ = asked(game, attacked.question)
    torch.testing.assert_close(undisturbed.losses, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses[0], shown, rtol=1e-5, atol=1e-5)
    assert torch.equal(undisturbed.right, right)
    counts = attack.question.counts
    gaps = ((shown - plain) / counts).sort(descending=True).values
    records = game.pool.buffer.records(np.arange(game.pool.buffer.size))
    np.testing.assert_allclose(records["loss"], gaps, atol=1e-5)
    np.testing.assert_allclose(sorted(records["reference"]), sorted(plain / counts), atol=1e-5)
    assert metrics[names.LOSS_UNDISTURBED] == pytest.approx(float(plain.sum() / counts.sum()), rel=1e-5)
    assert abs(float((shown - plain).abs().max())) > 1e-4, "the cases do not differ"


def test_a_replayed_gap_is_kept_up_to_date(play):
    game = play(**STRONG, buffer={**GAP, "draw": "keep", "merge_every": 2}, accumulation=2)
    game.step(), game.step()
    buffer, at = game.pool.buffer, game.plan.rows_at(UNDERSTAND, HARD)
    seen = []
    game.step(lambda inputs, output: seen.append((output.loss_sum / inputs.counts).detach()[at]))
    drawn = np.concatenate(game.unigame.round.drawn)
    expected = torch.cat(seen).numpy() - buffer.records(drawn)["reference"]
    np.testing.assert_allclose(buffer.losses[drawn], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["alternating", "simultaneous"])
def test_comparing_costs_rows_of_the_attack_and_a_pass_only_where_the_learner_makes_it(play, mode):
    counts = []
    for buffer in ({}, GAP, {"label_check": True}):
        game = play(mode=mode, buffer=buffer)
        with calls_of(game.model) as called:
            game.step()
        counts.append(called.count(LM))
        assert game.passes + 1 == called.count(LM)
    more = int(mode == "simultaneous")
    assert counts == [counts[0], counts[0] + more, counts[0] + more]


def test_only_pictures_whose_undisturbed_picture_is_answered_right_enter(play):
    game = play(buffer={"label_check": True})
    mine = game.pool.mine
    told = torch.tensor([True, False, True])

    def checked(*given):
        *rest, undisturbed = given
        assert not undisturbed.right.any()  # a random model
        mine(*rest, Undisturbed(undisturbed.losses, told))

    game.pool.mine = checked
    metrics = game.step()
    assert metrics[names.BUFFER_SIZE] == 2 and metrics[names.BUFFER_RIGHT] == pytest.approx(2 / 3)
    assert metrics[names.BUFFER_ACCEPT_RATE] == 1  # of the filter alone


def test_a_check_that_nothing_passes_is_told_of(play, caplog):
    game = play(buffer={"label_check": True})
    for _ in range(3):
        metrics = game.step()
    assert metrics[names.BUFFER_SIZE] == 0 and metrics[names.BUFFER_RIGHT] == 0
    assert "no candidate in the last 3 merges" in caplog.text and "label_check=false" in caplog.text


def test_right_is_what_the_greedy_answer_says(play):
    game = play()
    question = game.attack().question
    with torch.no_grad():
        plain, predicted = game.model(question), game.model.predict(question)
    assert not plain.right.any()
    question.labels = torch.where(question.labels == -100, -100, predicted)
    question.labels[1, question.label_positions[1, 0]] += 1
    with torch.no_grad():
        assert game.model(question).right.tolist() == [True, False, True]


def test_fewer_questions_about_an_attacked_picture(play):
    """The clean rows keep theirs."""

    def asked(**settings):
        game = play(turns=0, independent=True, **settings)
        clean = game.micro_batches[0].inputs[UNDERSTAND].segments[game.plan.rows_at(UNDERSTAND, "clean")]
        return clean.amax(1).tolist(), game.attack().question.segments.amax(1).tolist()

    (clean, attacked), (same, single) = asked(), asked(attack_turns=1)
    assert same == clean and max(attacked) > 1 and single == [1, 1, 1]
    assert asked(attack_turns=0)[1] == attacked


# Candidates of a source


def test_the_hardest_of_each_source():
    nan = float("nan")
    hardness = torch.tensor([[1.0, 5.0, 2.0], [3.0, nan, 2.0], [2.0, 4.0, 9.0], [3.0, 6.0, 2.0]])
    accepted = torch.tensor([[True] * 3, [True] * 3, [True, True, False], [True] * 3])
    two = hardest_of_each(hardness, accepted, 2)
    assert two.T.tolist() == [[False, True, False, True], [True, True, False, True], [True, True, False, False]]
    assert hardest_of_each(hardness, accepted, 0) is accepted


def test_sampled_pictures_enter_by_source(play):
    sizes = {}
    for topk in (0, 1, 2):
        game = play(path="sampled", sampling={"candidates": 3}, buffer={"topk": topk, "capacity": 99})
        game.step()
        sizes[topk] = game.pool.buffer.size
    assert sizes == {0: 9, 1: 3, 2: 6}


# Replay


def replays(play, **buffer):
    game = play(accumulation=2, buffer={"temperature": 1e-3, "merge_every": 4, **buffer})
    return [game.step() for _ in range(8)], game


def test_replayed_pictures_leave_as_released(play):
    steps, game = replays(play)
    # Four steps mine 24 pictures, of which 16 fit; the next four take four each.
    assert [m[names.BUFFER_REPLAYED] for m in steps] == [0] * 4 + [4] * 4
    assert [m[names.BUFFER_EMPTY] for m in steps] == [4] * 4 + [0] * 4
    assert [m[names.BUFFER_DISTINCT] for m in steps] == [0] * 4 + [4, 8, 12, 16]
    assert [m[names.BUFFER_SIZE] for m in steps][3:7] == [16, 12, 8, 4]
    assert {m[names.BUFFER_DRAWN] for m in steps[4:]} == {1.0}
    assert game.pool.merged.left == 16 and steps[-1][names.BUFFER_SIZE] == 16


def test_replayed_pictures_stay_where_they_are_kept(play):
    steps, _ = replays(play, draw="keep")
    assert [m[names.BUFFER_SIZE] for m in steps][3:] == [16] * 5
    assert steps[-1][names.BUFFER_DISTINCT] < 16, "the hardest are replayed again"
    assert steps[-1][names.BUFFER_DRAWN] > 1


def test_a_resumed_game_draws_what_the_other_would_have(play, tmp_path):
    games = [play(accumulation=2, buffer={"merge_every": 4}) for _ in range(2)]
    for _ in range(6):
        games[0].step()
    for file in games[0].unigame.pending():
        file.write(tmp_path)
    games[1].unigame.load(tmp_path)
    games[1].number = games[0].number
    for _ in range(3):
        metrics = [game.step() for game in games]
        assert metrics[0] == metrics[1]
        assert np.array_equal(*(np.concatenate(game.unigame.round.drawn) for game in games))


@pytest.mark.parametrize(
    ("settings", "filled"),
    [
        ({"buffer": {"percentile": 60.0}, "hard_rows": 2, "attack_rows": 3}, 60),
        ({"buffer": {"percentile": 60.0}, "hard_rows": 1, "attack_rows": 3}, None),
        ({"buffer": {"percentile": 60.0, "draw": "keep"}, "hard_rows": 2, "attack_rows": 3}, None),
        ({"every": 2, "hard_rows": 2, "attack_rows": 3}, 75),
        ({"every": 2, "path": "sampled", "sampling": {"candidates": 3}, "buffer": {"topk": 1}}, 75),
        ({"every": 2, "path": "sampled", "sampling": {"candidates": 3}}, None),
        ({"hard_rows": 0}, None),
    ],
    ids=str,
)
def test_hard_rows_that_cannot_all_be_filled_are_told_of(play, caplog, settings, filled):
    play(**settings)
    if filled is None:
        assert "at most" not in caplog.text
    else:
        assert f"at most {filled} % of these rows" in caplog.text and "buffer.draw=keep" in caplog.text


def test_hard_rows_weigh_by_the_share_that_is_filled(play):
    """One record for four places: a quarter of beta, not all of it."""
    game = play(accumulation=2, buffer={"capacity": 1})
    game.step()
    assert game.factors == {HARD: 0.0}
    game.step()
    assert game.factors == {HARD: 0.25}
    game = play(accumulation=2)
    game.step(), game.step()
    assert game.factors == {HARD: 1.0}
