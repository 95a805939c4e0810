"""The hard buffer over real collectives. Many games per launch."""

from __future__ import annotations

import pytest

from tests.multi_process.launcher import run_ranks

pytestmark = pytest.mark.ranks

GAMES = 25


@pytest.mark.parametrize("world_size", [2, 4])
def test_real_ranks_keep_what_one_rank_would_keep(world_size, tmp_path):
    for said in run_ranks("tests.multi_process.buffer", world_size, tmp_path, GAMES):
        assert f"{GAMES} games on {world_size} ranks: as on one" in said
