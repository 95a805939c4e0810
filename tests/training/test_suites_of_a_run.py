"""The suites of a recipe, made before anything is loaded."""

from __future__ import annotations

import pytest

from megaunigame.training.assembly import _suite
from tests.data.shard_files import write_shards
from tests.multi_process.tiny_run import sample


@pytest.mark.parametrize("suite", ["questions", "reconstruction_questions"])
def test_questions_that_share_a_row_need_a_mask(suite, tmp_path):
    write_shards(tmp_path, [3], sample)
    asked = {"suite": suite, "shards": str(tmp_path)}
    for settings, needs in (({}, "questions_per_row=8"), ({"questions_per_row": 1}, "")):
        made = _suite("q", asked | settings)
        assert made.config.shards == str(tmp_path) and made.needs_mask() == needs
