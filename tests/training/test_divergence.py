"""Which updates are made, when a run stops, and what it says."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from megaunigame.config import DivergenceConfig
from megaunigame.engine.broken_weights import BrokenWeight
from megaunigame.errors import ConfigError
from megaunigame.settings import check_values
from megaunigame.training import divergence_text
from megaunigame.training.divergence import Divergence
from megaunigame.training.divergence_text import Facts
from megaunigame.training.spikes import Spike

OBJECTIVES = {"caption": "generation", "talk": "understanding"}
GOOD = {"caption": 1.0, "talk": 2.0, "penalty": 0.1}
RECIPE = SimpleNamespace(
    optimizer=SimpleNamespace(lr=1e-5),
    output="runs/it",
    model=SimpleNamespace(path="models/it", weights_from=""),
)


def facts(**changes) -> Facts:
    given = {"step": 12, "samples": [[], []], "weights": [], "kept": "runs/it/divergence/step-00000012", "not_kept": []}
    return Facts(**{**given, "newest": "runs/it/checkpoints/step-00000008", **changes})


def divergence(**settings) -> Divergence:
    return Divergence(DivergenceConfig(**settings), ["penalty"])


def said(verdicts: Divergence, about: Facts) -> str:
    return divergence_text.stopped(verdicts.refusal, about, verdicts, OBJECTIVES, RECIPE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused(bad):
    verdicts = divergence()
    assert not verdicts.accepts(11, GOOD | {"caption": bad}, 1.0)
    assert verdicts.refusal.terms == ["caption"] and verdicts.refusal.is_broken
    assert said(verdicts, facts()).startswith("The loss of caption (objective generation) is not finite in step 12; nothing")


def test_several_losses_are_plural():
    verdicts = divergence()
    verdicts.accepts(11, GOOD | {"caption": math.nan, "talk": math.inf}, 1.0)
    begin = "The losses of caption (objective generation) and talk (objective understanding) are not finite in step 12; nothing"
    assert said(verdicts, facts()).startswith(begin)
    both = Divergence(DivergenceConfig(), ["penalty", "prize"])
    both.accepts(11, GOOD | {"penalty": math.nan, "prize": math.nan}, math.inf)
    assert "losses of its rows are (those of penalty and prize are not)" in said(both, facts())


@pytest.mark.parametrize(
    "lr, advice",
    [
        (1e-5, "optimizer.lr=5e-6 (it is 1e-5)"),
        (3e-4, "optimizer.lr=0.00015 (it is 0.0003)"),
        (1e30, "a far smaller optimizer.lr (it is 1e30, and 0.1 is much)"),
    ],
)
def test_a_learning_rate_is_advised_as_it_is_typed(lr, advice):
    verdicts = divergence()
    verdicts.accepts(11, GOOD, math.inf)
    recipe = SimpleNamespace(**{**vars(RECIPE), "optimizer": SimpleNamespace(lr=lr)})
    assert f"type {advice} or a smaller" in divergence_text.stopped(verdicts.refusal, facts(), verdicts, OBJECTIVES, recipe)


def test_a_spike_above_zeros_has_no_number_of_many_digits():
    spike = Spike("optim/grad_norm", 1.0, 0.0, 1e12)
    assert "is 1, more than 1,000,000 robust standard deviations" in divergence_text.spikes_text([spike], OBJECTIVES)


def test_a_gradient_that_is_not_finite_is_refused():
    verdicts = divergence()
    assert not verdicts.accepts(11, GOOD, math.inf)
    assert "The gradient of step 12 is not finite although the losses of its rows are; nothing" in said(verdicts, facts())


def test_a_loss_of_a_player_counts_only_where_it_reaches_the_learner():
    verdicts = divergence()
    assert verdicts.accepts(11, GOOD | {"penalty": math.nan}, 1.0) and verdicts.refusal is None
    assert not verdicts.accepts(12, GOOD | {"penalty": math.nan}, math.inf)
    assert "losses of its rows are (that of penalty is not)" in said(verdicts, facts())


def test_a_finite_step_is_accepted_and_forgets_the_last_verdict():
    verdicts = divergence()
    verdicts.accepts(0, GOOD, math.inf)
    assert verdicts.accepts(1, GOOD, 1e30) and verdicts.refusal is None
    assert (verdicts.skipped, verdicts.recent) == (1, [0])


def test_the_budget_is_one_of_the_last_steps():
    verdicts = divergence(skip=2, window=10)
    spent = []
    for step in range(40):
        verdicts.accepts(step, GOOD, math.inf if step in (0, 9, 18, 19, 27) else 1.0)
        spent.append(verdicts.is_spent)
    # 0 and 9; 9 left when 19 came (18, 19); 27 is the third of 18..27.
    assert [step for step, is_spent in enumerate(spent) if is_spent] == [27]
    assert verdicts.skipped == 5 and verdicts.recent == []


def test_without_a_budget_the_first_one_stops():
    verdicts = divergence(skip=0)
    verdicts.accepts(0, GOOD, math.inf)
    assert verdicts.is_spent and "divergence.skip=0 allows no update to be skipped." in said(verdicts, facts())


@pytest.mark.parametrize("on_spike", ["warn", "skip"])
def test_a_spike(on_spike):
    verdicts = divergence(on_spike=on_spike, spike=6.0, window=8)
    for step in range(8):
        assert verdicts.accepts(step, GOOD, 1.0) and not verdicts.warnings
    assert verdicts.accepts(8, GOOD | {"talk": 200.0}, 1.0) == (on_spike == "warn")
    text = "loss/talk (objective understanding) is 200, 1980 robust standard deviations above its median 2"
    if on_spike == "warn":
        assert verdicts.skipped == 0 and text in divergence_text.spikes_text(verdicts.warnings, OBJECTIVES)
        return
    assert verdicts.skipped == 1 and not verdicts.refusal.is_broken
    assert f"Step 12 has a spike: {text}; nothing" in said(verdicts, facts())
    assert "divergence.on_spike=warn" in said(verdicts, facts())


def test_a_broken_step_joins_no_series():
    verdicts = divergence()
    verdicts.accepts(0, GOOD, 1.0)
    before = verdicts.spikes.state_dict()
    verdicts.accepts(1, GOOD | {"talk": math.nan}, 1.0)
    verdicts.accepts(2, GOOD, math.inf)
    assert verdicts.spikes.state_dict() == before


def steps_until_refused(verdicts: Divergence, norms: list[float], first: int = 0) -> int | None:
    return next((first + i for i, norm in enumerate(norms) if not verdicts.accepts(first + i, GOOD, norm)), None)


def test_a_gradient_of_zero_for_too_many_steps_ends_the_run():
    verdicts = divergence(zero_gradients=3)
    assert steps_until_refused(verdicts, [0.0, 0.0, 1e-30, 0.0, 0.0, 0.0, 1.0]) == 5
    assert verdicts.refusal.zeros == 3 and not verdicts.refusal.is_broken
    text = divergence_text.without_gradient(verdicts.refusal, facts(), verdicts, RECIPE)
    assert "exactly 0 in the last 3 steps, up to step 12 (divergence.zero_gradients=3)" in text
    assert "Losses of this step: caption 1, talk 2, penalty 0.1. Look in runs/it/metrics.jsonl" in text
    assert text.endswith("before step 10, type checkpoint.resume=PATH with an older step folder; if such steps are meant, "
                         "type divergence.zero_gradients=0.")  # fmt: skip
    verdicts.accepts(6, {}, 0.0)
    assert "No row of this step had a loss." in divergence_text.without_gradient(verdicts.refusal, facts(), verdicts, RECIPE)


def test_a_gradient_of_zero_may_be_allowed():
    assert steps_until_refused(divergence(zero_gradients=0), [0.0] * 100) is None
    assert steps_until_refused(divergence(), [0.0] * 100) == 15


def test_steps_without_a_gradient_are_counted_over_a_resume():
    saved, resumed = divergence(zero_gradients=4), divergence(zero_gradients=4)
    assert steps_until_refused(saved, [1.0, 0.0, 0.0]) is None
    resumed.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert steps_until_refused(resumed, [0.0] * 9, first=3) == steps_until_refused(saved, [0.0] * 9, first=3) == 4
    older = divergence(zero_gradients=4)
    older.load_state_dict({name: value for name, value in saved.state_dict().items() if name != "zeros"})
    assert older.zeros == 0


def test_the_state_comes_back_through_json():
    settings = {"on_spike": "skip", "spike": 6.0, "window": 6, "skip": 2}
    whole = divergence(**settings)
    norms = [1.0, 1.1, 1.0, 0.9, math.inf, 1.0, 90.0, 1.0, math.inf, 1.0]
    first = [whole.accepts(step, GOOD, norm) for step, norm in enumerate(norms[:5])]
    resumed = divergence(**settings)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    rest = [(whole.accepts(5 + i, GOOD, norm), resumed.accepts(5 + i, GOOD, norm)) for i, norm in enumerate(norms[5:])]
    assert all(ours == theirs for ours, theirs in rest) and not all(first) and rest[1] == (False, False)
    assert whole.state_dict() == resumed.state_dict() and (whole.skipped, whole.is_spent) == (3, True)


def resumed_as(verdicts: Divergence, **settings) -> Divergence:
    """The next launch, with other settings."""
    other = divergence(**settings)
    other.load_state_dict(json.loads(json.dumps(verdicts.state_dict())))
    return other


def test_a_shorter_window_for_a_while_does_not_empty_the_budget():
    first = divergence(skip=2, window=100)
    for step in range(20):
        first.accepts(step, GOOD, math.inf if step in (3, 10) else 1.0)
    short = resumed_as(first, skip=2, window=5)
    for step in range(20, 30):
        short.accepts(step, GOOD, 1.0)
    assert first.recent == [3, 10] and short.recent == []
    whole = resumed_as(short, skip=2, window=100)
    whole.accepts(30, GOOD, math.inf)
    assert whole.recent == [3, 10, 30] and whole.is_spent and whole.skipped == 3


def test_a_budget_of_more_than_is_kept_can_be_spent(monkeypatch):
    monkeypatch.setattr("megaunigame.training.divergence.KEPT", 2)
    verdicts = divergence(skip=4, window=10)
    for step in range(5):
        assert not verdicts.is_spent
        verdicts.accepts(step, GOOD, math.inf)
    assert verdicts.is_spent and verdicts.refused == [0, 1, 2, 3, 4]


def test_spikes_that_are_looked_for_again_are_measured_from_the_last_values():
    quiet = divergence(spike=0.0)
    for step in range(30):
        assert quiet.accepts(step, GOOD, 1.0 if step else 1e9) and not quiet.warnings
    again = resumed_as(quiet, spike=6.0)
    again.accepts(30, GOOD, 50.0)
    assert [spike.name for spike in again.warnings] == ["optim/grad_norm"]


def test_an_older_checkpoint_has_no_state():
    verdicts = divergence()
    verdicts.load_state_dict({})
    assert verdicts.state_dict() == {"skipped": 0, "recent": [], "zeros": 0, "series": {}}


def test_a_budget_that_never_ends_is_refused():
    with pytest.raises(ConfigError, match=r"divergence\.skip=128.*would never stop.*Type divergence\.skip=127"):
        check_values(DivergenceConfig(skip=128), "divergence")


def test_the_message_names_samples_rows_and_what_to_type():
    verdicts = divergence(skip=1)
    for step in (10, 11):
        verdicts.accepts(step, GOOD | {"talk": math.nan}, 1.0)
    text = said(verdicts, facts(samples=[[], ["000042 (talk)"]], not_kept=["1 passes of rank 1 were too large to keep."]))
    assert "2 of the last 128 updates were not made, and divergence.skip=1 allows 1." in text
    assert "Samples: rank 1: 000042 (talk)." in text and "too large to keep" in text
    assert "type: megaunigame replay runs/it/divergence/step-00000012." in text
    assert text.endswith("type optimizer.lr=5e-6 (it is 1e-5) or a smaller optimizer.clip after it: it goes on from "
                         "runs/it/checkpoints/step-00000008.")  # fmt: skip


def test_no_checkpoint_is_promised_where_there_is_none():
    verdicts = divergence(skip=0)
    verdicts.accepts(1, GOOD, math.inf)
    text = said(verdicts, facts(newest="", kept=""))
    assert text.endswith("no checkpoint was saved yet, so it begins at step 1.") and "goes on" not in text
    assert "Its rows were not kept: those of 10 steps are." in text


def test_a_skipped_step_says_how_many_are_left():
    verdicts = divergence()
    verdicts.accepts(11, GOOD | {"talk": math.nan}, 1.0)
    text = divergence_text.skipped(verdicts.refusal, facts(), verdicts, OBJECTIVES)
    assert "its update was skipped on all ranks, number 1 of the 3 that may be skipped within 128 steps" in text


def test_broken_weights_are_the_cause_and_nothing_else():
    frozen = [BrokenWeight(f"layer.{i}", 1, 10, trained=False) for i in range(10)]
    text = divergence_text.broken(facts(weights=frozen), RECIPE, "")
    assert text.startswith("Weights are not finite in step 12: layer.0 (frozen, 1 of 10 elements), layer.1")
    assert "layer.8" not in text and "and 2 more" in text and "Copy the model folder models/it again" in text
    assert "optimizer" not in text and "replay" not in text
    trained = [BrokenWeight("head", 3, 10, trained=True)]
    text = divergence_text.broken(facts(weights=trained), RECIPE, "runs/it/checkpoints/step-00000008")
    assert "A weight is not finite in step 12: head (trained, 3 of 10 elements)." in text
    assert "read like this from runs/it/checkpoints/step-00000008" in text
    assert "Type checkpoint.resume=PATH with a step folder older than runs/it/checkpoints/step-00000008." in text
    assert "No checkpoint was saved yet" in divergence_text.broken(facts(weights=trained, newest=""), RECIPE, "")
