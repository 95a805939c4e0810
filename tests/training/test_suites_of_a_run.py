"""Suites are refused before anything is loaded."""

from __future__ import annotations

import pytest

from megaunigame.errors import ConfigError
from megaunigame.training.assembly import _suite
from tests.data.shard_files import write_shards
from tests.multi_process.tiny_run import sample


@pytest.mark.parametrize("suite", ["questions", "reconstruction_questions"])
def test_questions_that_share_a_row_need_a_mask(suite, tmp_path):
    write_shards(tmp_path, [3], sample)
    asked = {"suite": suite, "shards": str(tmp_path)}
    said = (
        r"evaluation.suites.q.questions_per_row=8: .*model.attention=flash_attention_2 takes none. Type evaluation.suites.q.qu"
    )
    with pytest.raises(ConfigError, match=said):
        _suite("q", asked, "flash_attention_2")
    for settings, attention in (({"questions_per_row": 1}, "flash_attention_3"), ({}, "sdpa")):
        assert _suite("q", asked | settings, attention).config.shards == str(tmp_path)
