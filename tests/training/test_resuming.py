"""What a resumed run must have in common with the launch that saved it, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.checkpoint.typed_paths import same_place
from megaunigame.config import BatchConfig, CheckpointConfig, LoraConfig, ModelConfig, legal_ranks, load_recipe, resolve_batch
from megaunigame.data.sources.base import Cursor
from megaunigame.errors import CheckpointError, ConfigError
from megaunigame.training.resuming import begins_data_again, check_batch, check_first_weights, continued, describe
from megaunigame.training.state import TrainState

FOLDER = Path("step-00000040")
CURSORS = {"train": Cursor(0, 800, {})}
SAVED = TrainState(
    step=40, cursors=CURSORS, bad_samples={"reads": {"train": 9}, "bad": {}}, rows={"u": [1]}, ranks=2, rows_per_step=20
)


def batch_of(**given):
    return SimpleNamespace(batch=BatchConfig(**given))


@pytest.mark.fault(
    "another number of ranks cannot make the same steps", does="refuses, naming the legal numbers", lost="nothing"
)
def test_only_the_number_of_ranks_may_not_change_a_step():
    check_batch(FOLDER, SAVED, batch_of(accumulation=2), 2, 5, 20)
    check_batch(FOLDER, SAVED, batch_of(accumulation=3), 2, 5, 30)  # the recipe says so
    check_batch(FOLDER, SAVED, batch_of(accumulation=1), 4, 5, 20)
    check_batch(FOLDER, SAVED, batch_of(global_rows=40), 4, 5, 40)
    check_batch(FOLDER, replace(SAVED, ranks=0, rows_per_step=0), batch_of(accumulation=2), 4, 5, 40)
    with pytest.raises(CheckpointError) as caught:
        check_batch(FOLDER, SAVED, batch_of(accumulation=2), 4, 5, 40)
    for part in ("saved by 2 ranks with 20 rows", "this launch of 4 ranks would have 40", "numbers of ranks: 1, 2, 4."):
        assert part in str(caught.value)
    for part in ("batch.global_rows=20 batch.accumulation=null", "batch.global_rows=40 batch.accumulation=null"):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"this launch of 1 rank would have 10, "):
        check_batch(FOLDER, SAVED, batch_of(accumulation=2), 1, 5, 10)
    with pytest.raises(CheckpointError, match="give other rows per micro-step"):
        check_batch(FOLDER, SAVED, batch_of(accumulation=2), 4, 6, 48)


def test_ranks_that_share_their_rows_count_once():
    check_batch(FOLDER, SAVED, batch_of(accumulation=2), 4, 5, 20, 2)
    shared = replace(SAVED, ranks=8, sequence_ranks=4)
    check_batch(FOLDER, shared, batch_of(accumulation=3), 2, 5, 30)  # as many data ranks, so the recipe says so
    with pytest.raises(
        CheckpointError, match=r"8 ranks \(4 to a row\) with 20 .* of 8 ranks \(2 to a row\) would have 40.*: 2, 4, 8\."
    ):
        check_batch(FOLDER, shared, batch_of(accumulation=2), 8, 5, 40, 2)
    with pytest.raises(ConfigError, match=r"3 groups of 2 ranks.*numbers of ranks: 2, 4, 8\."):
        resolve_batch(BatchConfig(global_rows=20), 5, 3, 2)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 40))
def test_legal_numbers_of_ranks_are_those_that_resolve(micro_steps, rows, ranks):
    total = micro_steps * rows
    legal = legal_ranks(total, rows)
    assert legal[0] == 1 and legal[-1] == micro_steps
    if ranks in legal:
        assert resolve_batch(BatchConfig(global_rows=total), rows, ranks) * ranks * rows == total
    else:
        with pytest.raises(ConfigError, match=rf"numbers of ranks: {', '.join(map(str, legal))}\.$"):
            resolve_batch(BatchConfig(global_rows=total), rows, ranks)


def test_rows_that_no_number_of_ranks_can_make():
    assert legal_ranks(20, 6) == []
    with pytest.raises(ConfigError, match="Type batch.global_rows=18, or change the objectives' rows"):
        resolve_batch(BatchConfig(global_rows=20), 6, 1)


def test_everything_goes_on_at_another_number_of_ranks():
    state = continued(SAVED, CheckpointConfig(), 4, 20)
    assert state == replace(SAVED, ranks=4)
    assert describe(FOLDER, SAVED, CheckpointConfig(), 4, 20) == (
        "resuming from step 40, saved in step-00000040; saved by 2 ranks, continued by 4"
    )
    assert "; saved by 1 rank, continued by 2" in describe(FOLDER, replace(SAVED, ranks=1), CheckpointConfig(), 2, 20)
    assert describe(FOLDER, SAVED, CheckpointConfig(), 2, 20) == "resuming from step 40, saved in step-00000040"
    assert "rotation get other samples" in describe(FOLDER, SAVED, CheckpointConfig(), 4, 20, rotates=True)
    assert "rotation" not in describe(FOLDER, SAVED, CheckpointConfig(), 2, 20, rotates=True)
    assert "saved with 20 rows a step, continued with 40" in describe(FOLDER, SAVED, CheckpointConfig(), 2, 40)


def test_data_begin_again_once():
    """A job that is given again with the same command goes on; a named step folder is a new request."""
    again = CheckpointConfig(reset_data=True)
    first = continued(SAVED, again, 2, 20)
    assert (first.cursors, first.rows, first.bad_samples) == ({}, {}, {"reads": {}, "bad": {}})
    assert (first.step, first.data_reset) == (40, True)
    assert "all data streams begin again (checkpoint.reset_data=true)" in describe(FOLDER, SAVED, again, 2, 20)

    later = replace(first, step=50, cursors={"other": Cursor(0, 200, {})})
    assert continued(later, again, 2, 20) == later
    assert "done by an earlier launch" in describe(FOLDER, later, again, 2, 20)
    named = CheckpointConfig(reset_data=True, resume="runs/a/checkpoints/step-00000050")
    back = continued(later, named, 2, 20)
    assert back.cursors == {} and back.resume == named.resume
    back = replace(back, step=60, cursors=later.cursors)
    assert continued(back, named, 2, 20) == back, "the same command again"
    said = describe(Path("step-00000060"), back, named, 2, 20)
    assert "checkpoint.resume=runs/a/checkpoints/step-00000050 was done by an earlier launch" in said
    assert "was done" not in describe(Path(named.resume), later, replace(named, resume=f"{named.resume}/"), 2, 20)
    assert "checkpoint.resume=never was done" in describe(FOLDER, SAVED, CheckpointConfig(resume="never"), 2, 20)
    without = continued(later, CheckpointConfig(), 2, 20)
    assert without.cursors == later.cursors and continued(without, again, 2, 20).cursors == {}


def test_adapters_are_scaled_as_they_were():
    saved = replace(SAVED, lora={"alpha": 8.0, "rslora": True, "rank": 4})
    model = ModelConfig("model", train="lora", lora=LoraConfig(rank=4, alpha=8.0, rslora=True))
    check_first_weights(FOLDER, saved, model, "")
    for name, was, now in (("alpha", "8.0", 16.0), ("alpha", "8.0", 4.0), ("rslora", "true", False)):
        other = replace(model, lora=replace(model.lora, **{name: now}))
        with pytest.raises(CheckpointError, match=f"Type model.lora.{name}={was} to resume it"):
            check_first_weights(FOLDER, saved, other, "")
    check_first_weights(FOLDER, replace(SAVED, lora={}), model, "")  # not known
    check_first_weights(FOLDER, saved, replace(other, train="full"), "")


def test_a_folder_may_be_typed_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    saved = replace(SAVED, weights_from="runs/a", resume="runs/a", data_reset=True)
    for typed in ("runs/a", "runs/a/", "./runs/a", f"{tmp_path}/runs/a", "link/a"):
        check_first_weights(FOLDER, saved, ModelConfig("model", weights_from=typed), "")
        assert not begins_data_again(CheckpointConfig(reset_data=True, resume=typed), saved), typed
    for typed in ("runs/b", ""):
        with pytest.raises(CheckpointError, match="model.weights_from=runs/a, this one has"):
            check_first_weights(FOLDER, saved, ModelConfig("model", weights_from=typed), "")
    assert begins_data_again(CheckpointConfig(reset_data=True, resume="runs/b"), saved)
    (tmp_path / "never").mkdir()
    assert same_place("never", "never") and not same_place("./never", "never"), "a word"
    monkeypatch.chdir("/")
    assert same_place("runs/a", "runs/a")


def test_weights_from_is_a_setting_of_the_model():
    with pytest.raises(
        ConfigError, match=r"checkpoint\.weights_from is not a setting: type model\.weights_from=\.\.\. instead"
    ):
        load_recipe("launch/recipes/tiny_sft.yaml", ["checkpoint.weights_from=runs/a"])
