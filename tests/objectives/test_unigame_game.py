"""The game in one process: what is shown, what it costs, and rows without a picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megaunigame.adversary.base import Adversary
from megaunigame.objectives.unigame import names, simultaneous
from megaunigame.objectives.unigame.game import ADVERSARIAL
from megaunigame.objectives.unigame.paths import DecoderPath
from megaunigame.objectives.unigame.reversal import reverse_gradient
from tests.objectives.played_by_hand import ADVERSARIES, CLIP, LM, Played, calls_of


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
    changed, source = moved != seen.predictions, game.model.encode_target(attack.redraw.targets)
    shown = torch.where(changed, moved, source)
    assert torch.equal(attacked.pictures, game.model.decode_target(shown))
    # A code that became that of the source changes nothing.
    assert 0 < (shown != source).float().mean() < changed.float().mean() < 1
    torch.testing.assert_close(attacked.changed, (shown != source).float().mean(1))


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


# Passes


PLAYED = [
    (path, mode, adversary)
    for path in ("decoder", "embedding", "sampled")
    for mode in ("alternating", "simultaneous")
    for adversary in ADVERSARIES
    if path != "sampled" or (mode == "alternating" and adversary != "pgd")
]


COMPARED = [("decoder", "alternating"), ("decoder", "simultaneous"), ("embedding", "alternating"), ("sampled", "alternating")]


@pytest.mark.parametrize(
    ("path", "mode", "adversary", "hardness"),
    [*((*played, "loss") for played in PLAYED), *((*compared, "perturber", "gap") for compared in COMPARED)],
)
def test_dummies_make_the_same_calls_as_pictures(play, path, mode, adversary, hardness):
    """Every module, in the same order: under ZeRO-3 each call is a collective."""
    sequences = []
    for data in ("pictures", "texts", "untold"):
        settings = {"path": path, "mode": mode, "adversary": ADVERSARIES[adversary], "buffer": {"hardness": hardness}}
        game = play(data, condition="caption", pictures_every=1, **settings, **CLIP)
        calls, sizes = [], []
        for _ in range(2):
            with calls_of(game.model) as called:
                sizes.append(game.step()[names.BUFFER_SIZE])
            calls.append((called, game.passes))
        sequences.append(calls)
        assert (sizes[-1] > 0) == (data == "pictures"), "the cases do not differ"
    assert sequences[0][0][0].count(LM) > 1
    assert sequences[1] == sequences[0] and sequences[2] == sequences[0]


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
    ascents = ADVERSARIES[adversary].get("steps", 0)
    drawn = {"decoder": 1, "embedding": 0, "sampled": game.model.calls_per_sample + 1}[path]
    attack = ascents + drawn + (mode == "alternating")
    again = ascents if path == "embedding" else 0
    assert counts == [accumulation * (1 + n + again) for n in (attack, 0, attack)]


@pytest.mark.parametrize("factor", [1.0, 0.25, 0.0])
def test_a_weight_of_the_attacked_rows_is_one_of_the_learner_alone(play, monkeypatch, factor):
    """Simultaneous: what reaches the adversary is the learner's weighted gradient, reversed and freed of that weight."""
    game, seen = play(mode="simultaneous"), []
    before = game.unigame.before_learner

    def weighted(step):
        before(step)
        step.factors[ADVERSARIAL] = factor

    monkeypatch.setattr(game.unigame, "before_learner", weighted)
    monkeypatch.setattr(simultaneous, "reverse_gradient", lambda rows, by: (seen.append(by), reverse_gradient(rows, by))[1])
    game.step()
    config = game.unigame.config
    assert seen == [config.gain / (config.beta * factor) if factor else 0.0]
