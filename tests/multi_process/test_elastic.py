"""A run goes on at other numbers of ranks: one launch, whose worlds of 1, 2 and 4 ranks are forked one after the other."""

from __future__ import annotations

import pytest

from tests.multi_process import elastic
from tests.multi_process.launcher import run_ranks
from tests.multi_process.tiny_run import write_data, write_model, write_pictures

pytestmark = pytest.mark.ranks


@pytest.mark.timeout(600)
@pytest.mark.fault(
    "the job comes back with another number of ranks, or another ZeRO stage",
    does="goes on with the same samples in each step, to the same weights (1e-6); players go on as they were saved",
    lost="nothing",
)
def test_other_numbers_of_ranks(tmp_path):
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    write_pictures(tmp_path / "pictures")
    cases = [*elastic.CASES, "reset_data"]
    # The worlds of elastic.py repeat steps that test_trainer.py runs with every collective compared.
    said = run_ranks("tests.multi_process.elastic", 1, tmp_path, *cases, timeout=580, compare_collectives=False)[0]
    reported = [line.split(":")[0] for line in said.splitlines()]
    assert [case for case in cases if case not in reported] == []
