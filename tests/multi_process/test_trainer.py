"""Two ranks against plain torch, and a resumed run against one that never stopped. Many cases per launch."""

from __future__ import annotations

import pytest

from tests.multi_process import gradients, mixed, resume, unigame
from tests.multi_process.launcher import run_ranks
from tests.multi_process.tiny_run import write_data, write_families, write_long_world, write_pictures


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = write_families(tmp_path_factory.mktemp("tiny"))
    write_data(folder / "shards")
    write_pictures(folder / "pictures")
    return folder


@pytest.mark.timeout(600)
def test_every_step_on_two_ranks_equals_plain_torch(home):
    said = run_ranks("tests.multi_process.gradients", 2, home, timeout=580)[0]
    for case in gradients.CASES:
        assert f"{case}: largest error" in said
    assert "divergence on rank 1: both ranks stop" in said


@pytest.mark.timeout(600)
def test_every_bf16_step_on_two_ranks_equals_plain_mixed_precision(home):
    write_long_world(home)
    said = run_ranks("tests.multi_process.mixed", 2, home, *mixed.CASES, timeout=580)[0]
    for case in mixed.CASES:
        assert f"{case}: losses" in said


@pytest.mark.timeout(300)
def test_one_rank_runs_the_same_code(home):
    said = run_ranks("tests.multi_process.gradients", 1, home, "accumulation", "lora_checkpointing", "zero2", timeout=280)[0]
    assert said.count("largest error") == 3


@pytest.mark.timeout(600)
def test_both_players_of_the_game_equal_plain_torch_on_two_ranks(home):
    cases = [case for case in unigame.CASES if not case.startswith("redraw")]
    said = run_ranks("tests.multi_process.unigame", 2, home, *cases, "uneven", "cost", timeout=580)[0]
    for case in cases:
        assert f"{case}: largest error" in said
    assert "uneven ranks: both replay" in said and "cost in passes and gathered bytes" in said


@pytest.mark.timeout(600)
def test_an_attack_on_what_the_learner_has_drawn_equals_plain_torch_on_two_ranks(home):
    cases = [case for case in unigame.CASES if case.startswith("redraw")]
    said = run_ranks("tests.multi_process.unigame", 2, home, *cases, "combined", timeout=580)[0]
    for case in cases:
        assert f"{case}: largest error" in said
    assert "combined recipe: one generate, one attack, one understand pass" in said


@pytest.mark.timeout(300)
def test_one_rank_plays_the_same_game(home):
    cases = ["alternating_lora_accumulation", "simultaneous_checkpointing", "simultaneous_zero2"]
    said = run_ranks("tests.multi_process.unigame", 1, home, *cases, timeout=280)[0]
    assert said.count("largest error") == 3


@pytest.mark.timeout(600)
def test_resume_equals_an_uninterrupted_run_to_the_last_bit(home):
    said = run_ranks("tests.multi_process.resume", 2, home, timeout=580)[0]
    for case in resume.CASES:
        assert f"{case}: equal to the last bit" in said
    assert "evaluation: changes nothing" in said
