"""ZeRO on one GPU over NCCL, through the launch script: every method, adapters and whole models, save and resume."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from megaunigame.engine.fused_kernels import PACKAGE
from tests.gpu.launches import CASES, FIRST, LAST, launch, run_whole_and_in_parts, write_world


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    write_world(folder)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES)
def test_a_run_trains_saves_and_resumes(case, home):
    if case == "sft_liger" and find_spec(PACKAGE) is None:
        pytest.skip("liger-kernel is not installed")
    launch(case, home, home / "runs" / case, (FIRST, LAST), "cuda")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["sft_lora", "unigame_alternating", "unigame_simultaneous_emu3", "unimrg", "aia_lora"])
def test_a_deterministic_run_that_is_resumed_equals_one_that_was_not(case, home):
    whole, resumed = run_whole_and_in_parts(case, home, "cuda")
    assert whole == resumed
