"""The suites on a real, tiny, random Janus: everything they ask of a model exists and has the right shapes."""

from __future__ import annotations

import numpy as np
import pytest

from megaunigame.evaluation.run import run_evaluation
from megaunigame.evaluation.suites.questions import Questions
from megaunigame.judges.scenes import Oracle
from megaunigame.models.janus import Janus
from tests.evaluation.fakes import TEXTS, bright_dark, write_tars
from tests.evaluation.test_suites import all_suites
from tests.tiny import write_tiny
from tests.worlds import on_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Janus:
    return write_tiny("janus", tmp_path_factory.mktemp("janus"), TEXTS).load()


def test_all_suites(model, tmp_path):
    shards = write_tars(tmp_path / "shards", bright_dark(3))
    oracle = tmp_path / "oracle.safetensors"
    Oracle().save(oracle)
    suites = all_suites(shards, str(oracle))
    said: list[str] = []
    result = on_ranks(1, lambda world: run_evaluation(model, suites, world, 0, tmp_path, say=said.append))[0]["suites"]
    assert [line.split()[1] for line in said] == list(suites) and said[-1].endswith(f"({len(suites)} of {len(suites)})")
    assert [row[:2] for row in result["val"]["tables"][0]["rows"]][:2] == [["color", 3], ["light", 3]]
    assert np.isfinite(result["loss"]["metrics"]["answers/loss"])
    # A random head over 48 codes knows nothing: about ln 48 = 3.87 nats per code.
    assert 3 < result["loss"]["metrics"]["caption/loss"] < 5
    assert result["tokenizer"]["metrics"]["psnr/pixel"] > 0
    assert len(result["draw"]["pictures"]) == 3 * 3 and len(result["again"]["pictures"]) == 3 * 3


def test_sharing_a_row_changes_no_answer_of_a_real_model(model, tmp_path):
    shards = write_tars(tmp_path / "shards", bright_dark(4))
    suites = {
        str(n): Questions(Questions.Config(shards=shards, batch=3, questions_per_row=n, skip_kinds=[])) for n in (1, 2, 3)
    }
    result = on_ranks(1, lambda world: run_evaluation(model, suites, world, 0, tmp_path))[0]["suites"]
    said = [[(q["question"], q["predicted"]) for q in result[n]["questions"]] for n in "123"]
    assert len(said[0]) == 12 and said[0] == said[1] == said[2]
