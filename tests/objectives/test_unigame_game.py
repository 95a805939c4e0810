"""The pieces of the game on a tiny random Janus in one process."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megaunigame.adversary.base import Adversary
from megaunigame.models.janus import Janus
from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.game import HARD
from megaunigame.objectives.unigame.paths import DecoderPath
from megaunigame.objectives.unigame.pool import PATIENCE
from megaunigame.replay.records import RecordLayout
from megaunigame.replay.rows import pack, to_records, to_rows
from megaunigame.step.inputs import IGNORE, UnderstandInputs
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import UNDERSTAND
from tests.multi_process.tiny_run import write_model
from tests.objectives.played_by_hand import Played, calls_of, captured, shards

PICTURES = [n for n in range(1, 60) if n % 5 and n % 7]
"""Samples with a picture and a caption."""
TEXTS = [n for n in range(5, 200, 5) if n % 7]
"""Samples without a picture."""
UNTOLD = [n for n in range(7, 200, 7) if n % 5]
"""Samples with a picture and without a caption."""
LM = "model.language_model"
CLIP = {"clip": {"model": "tiny-random", "tau": -1.0}}
ADVERSARIES: dict[str, dict[str, Any]] = {
    "perturber": {"kind": "perturber", "hidden": 8},
    "noise": {"kind": "noise"},
    "pgd": {"kind": "pgd", "steps": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("game")
    write_model(home / "model")
    for name, numbers in {"pictures": PICTURES, "texts": TEXTS, "untold": UNTOLD}.items():
        shards(home / name, numbers)
    return home


@pytest.fixture
def model(folder):
    return Janus.load(folder / "model", max_length=96).train()


@pytest.fixture
def play(folder, model):
    """`play(data="pictures", **settings)`: a game on that data."""
    return lambda data="pictures", **settings: Played(model, folder / data, **settings)


class Still(Adversary):
    """Moves nothing."""

    def perturb(self, tokens: Tensor, ascend, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(tokens)


def attacked_by_nobody(game: Played, anchored: bool):
    adversary = Still(game.unigame.adversary.config, game.model.token_width)
    attack = game.attack()
    with torch.no_grad():
        return attack, DecoderPath(adversary, anchored).attack(game.model, attack, torch.Generator())


# Decoding


def test_without_a_perturbation_the_source_is_shown_as_the_tokenizer_sees_it(play):
    game = play()
    attack, attacked = attacked_by_nobody(game, anchored=True)
    reconstruction = game.model.decode_target(game.model.encode_target(attack.redraw.targets))
    assert torch.equal(attacked.pictures, reconstruction)
    assert attacked.changed.tolist() == [0.0] * 3


def test_without_an_anchor_the_likeliest_codes_are_shown(play):
    game = play()
    attack, attacked = attacked_by_nobody(game, anchored=False)
    with torch.no_grad():
        drawn = game.model(attack.redraw, predict=True).predictions
    assert torch.equal(attacked.pictures, game.model.decode_target(drawn))
    assert not torch.equal(drawn, game.model.encode_target(attack.redraw.targets)), "both anchors would show the same"
    assert attacked.changed.tolist() == [0.0] * 3


def test_with_an_anchor_only_changed_places_are_redrawn(play):
    game = play(adversary={**ADVERSARIES["noise"], "eps_max": 1.0})
    attack = game.attack()
    with torch.no_grad():
        attacked = game.unigame.path.attack(game.model, attack, torch.Generator().manual_seed(0))
        seen = game.model(attack.redraw, predict=True)
        moved = game.model.model.generation_head(seen.hidden + attacked.delta).argmax(-1)
    changed = moved != seen.predictions
    assert 0 < changed.float().mean() < 1
    torch.testing.assert_close(attacked.changed, changed.float().mean(1))
    shown = torch.where(changed, moved, game.model.encode_target(attack.redraw.targets))
    assert torch.equal(attacked.pictures, game.model.decode_target(shown))


@pytest.mark.parametrize("path", ["decoder", "embedding"])
def test_the_answers_loss_reaches_the_adversary(play, path):
    game = play(path=path, adversary=ADVERSARIES["perturber"])
    unigame = game.unigame
    with game.aside():
        attacked = unigame.path.attack(game.model, game.attack(), torch.Generator().manual_seed(0))
        loss = game.model(attacked.question).loss_sum.sum()
    gradients = torch.autograd.grad(loss, unigame.parameters)
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)


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
def middle_similarity(game: Played) -> float:
    """Of the candidates of one micro-step."""
    attack, path, generator = game.attack(), game.unigame.path, torch.Generator().manual_seed(0)
    attacked = path.attack(game.model, attack, generator)
    pictures, _ = path.harvest(game.model, attack, attacked, attack.question.counts, generator)
    return float(game.pool.similarity(attack, pictures[0]).median())


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "simultaneous"}, {"path": "sampled", "sampling": {"candidates": 2}}], ids=str
)
def test_what_is_mined_is_plausible_and_hard(play, settings):
    """Similarity at or above tau AND loss at or above the percentile of the plausible ones."""
    game = play(**settings, **CLIP, accumulation=3, buffer={"percentile": 60.0})
    unigame, offered = game.unigame, captured(game)
    unigame.clip.tau = middle_similarity(game)  # about half will pass
    metrics = game.step()

    similarity, losses, real = [], [], []
    for attack, _, pictures, sums, *_ in offered:
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
    offered = captured(game)
    metrics = game.step()
    ((attack, attacked, _, losses, *_),) = offered
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
    offered = captured(game)
    game.step()
    ((attack, _, pictures, _, *_),) = offered
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
    offered = captured(game)
    game.step()
    ((attack, _, pictures, _, *_),) = offered
    rows = game.pool.rows(np.arange(4))
    question = attack.question
    question.images = game.model.as_source(((pictures[0] + 1) * 127.5).round() / 127.5 - 1).unsqueeze(1)  # as stored
    with torch.no_grad():
        mined, replayed = (game.model(inputs).loss_sum for inputs in (question, rows))
    order = [question.keys.index(key) for key in rows.keys]
    torch.testing.assert_close(replayed, mined[order], rtol=1e-5, atol=1e-5)


def test_rows_as_long_as_a_row_can_be_are_stored(folder):
    """Sequences are padded to a multiple of eight, which may exceed `max_length`."""
    game = Played(Janus.load(folder / "model", max_length=53).train(), folder / "pictures", turns=0)
    question = game.attack().question
    assert question.attention.sum(1).max() == 53 and question.tokens.shape[1] == 56
    game.step()
    assert game.pool.buffer.size == 3


def test_rows_keep_every_similarity_and_step(play):
    game = play()
    layout, attack = game.pool.buffer.layout, game.attack()
    losses, similarity = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.25, 0.5, -0.75])
    packed = pack(attack.redraw.targets, losses, similarity, torch.tensor([True, False, True]))
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
    packed = pack(attack.redraw.targets, *torch.ones(3, 3))
    records, _ = to_records(layout, attack.question, packed, step=0)
    records["length"] = [length - 1, length, 3]
    rows = to_rows(game.model, records)
    assert rows.intact.tolist() == [True, False, True] and not rows.front_padding
    assert torch.equal(rows.label_positions, label_positions(rows.labels))


# Rows without a picture


def test_without_a_picture_there_is_nothing_to_attack(play):
    game = play("texts")
    attack = game.attack()
    assert attack.question.counts.tolist() == [0.0] * 3 and attack.redraw.counts.tolist() == [0.0] * 3
    metrics = game.step()
    assert metrics[names.BUFFER_SIZE] == 0 and names.LOSS_ADVERSARIAL not in metrics


@pytest.mark.parametrize(("condition", "count"), [("image", 3), ("caption", 0)])
def test_a_sample_without_a_caption_is_redrawn_from_its_picture_only(play, condition, count):
    attack = play("untold", condition=condition).attack()
    assert int((attack.question.counts > 0).sum()) == count


def test_a_caption_is_what_the_picture_is_redrawn_from(play):
    game = play(condition="caption")
    attack = game.attack()
    assert attack.redraw.images is None and all(text.startswith("picture ") for text in attack.texts)
    prompts = [game.model.processor.text(row.tolist()) for row in attack.redraw.tokens]
    assert all(text in prompt for text, prompt in zip(attack.texts, prompts, strict=True))
    assert (attack.question.counts > 0).all()


PATHS_AND_MODES = [
    (path, mode)
    for path in ("decoder", "embedding", "sampled")
    for mode in ("alternating", "simultaneous")
    if (path, mode) != ("sampled", "simultaneous")
]
PLAYED = [
    (path, mode, adversary)
    for path, mode in PATHS_AND_MODES
    for adversary in ADVERSARIES
    if (path, adversary) != ("sampled", "pgd")
]


@pytest.mark.parametrize(("path", "mode", "adversary"), PLAYED)
def test_dummies_make_the_same_calls_as_pictures(play, path, mode, adversary):
    """Every module, in the same order: under ZeRO-3 each call is a collective."""
    sequences = []
    for data in ("pictures", "texts", "untold"):
        game = play(data, path=path, mode=mode, adversary=ADVERSARIES[adversary], condition="caption", pictures_every=1, **CLIP)
        calls, sizes = [], []
        for _ in range(2):
            with calls_of(game.model) as called:
                sizes.append(game.step()[names.BUFFER_SIZE])
            calls.append((called, game.passes))
        sequences.append(calls)
        assert (sizes[-1] > 0) == (data == "pictures"), "the cases do not differ"
    assert sequences[0][0][0].count(LM) > 1
    assert sequences[1] == sequences[0] and sequences[2] == sequences[0]


# Passes


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("path", "mode", "adversary"), PLAYED)
def test_reported_passes_are_the_calls_of_the_language_model(play, path, mode, adversary, accumulation):
    game = play(path=path, mode=mode, adversary=ADVERSARIES[adversary], accumulation=accumulation, every=2)
    counts = []
    for _ in range(3):
        with calls_of(game.model) as called:
            game.step()
        counts.append(called.count(LM))
        assert game.passes + accumulation == called.count(LM)
    # Attacks come in the first and third step. A picture costs: once redrawn (decoder), each step of pgd, and once asked
    # about where the learner's own pass does not do it; sampled pictures cost one call per code and one to ask about them.
    climb = ADVERSARIES[adversary].get("steps", 0)
    attack = climb + {"decoder": 1, "embedding": 0, "sampled": game.model.calls_per_sample + 1}[path] + (mode == "alternating")
    again = climb if path == "embedding" else 0
    assert counts == [accumulation * (1 + n + again) for n in (attack, 0, attack)]
