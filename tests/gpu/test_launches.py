"""ZeRO on one GPU over NCCL, through the launch script: every method, adapters and whole models, save and resume."""

from __future__ import annotations

import pytest

from tests.gpu.launches import CASES, train_and_resume, write_world


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    write_world(folder)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES)
def test_a_run_trains_saves_and_resumes(case, home):
    train_and_resume(case, home, "cuda")
