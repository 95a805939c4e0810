"""`where: [not in FILE]`: a later run leaves out what an earlier one has replaced."""

from __future__ import annotations

import json

import pytest

from megaunigame.config import StreamConfig
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import DataError
from tests.data.shard_files import write_shards

SIZES = [4, 3, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, lambda n: {"json": b"{}"})


def quarantine(tmp_path, *named: tuple[str, str]) -> str:
    path = tmp_path / "an old run" / "quarantine.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"stream": "s", "shard": shard, "key": key}) + "\n" for shard, key in named))
    return str(path)


def keys(folder, *where: str) -> list[int]:
    source = open_stream("s", StreamConfig(str(folder), where=list(where)), 3).source
    return sorted(int(source.find(position, 0).key) for position in range(source.order.samples))


@pytest.mark.fault("samples of an earlier run's quarantine.jsonl", does="`not in FILE` leaves them out", lost="those samples")
def test_listed_samples_are_left_out(folder, tmp_path):
    path = quarantine(
        tmp_path, ("data-000000.tar", "0000002"), ("llava/data-000002.tar", "0000007"), ("data-000001.tar", "0000002")
    )
    assert keys(folder, f"not in {path}") == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11], "by shard and key; the name of a mix is no part"
    assert keys(folder, f"not in {path}", "has json") == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]


def test_a_lost_shard_is_left_out_whole(folder, tmp_path):
    assert keys(folder, f"not in {quarantine(tmp_path, ('data-000001.tar', ''))}") == [0, 1, 2, 3, 7, 8, 9, 10, 11]


def test_a_list_that_grows_is_other_data_for_a_resume(folder, tmp_path):
    path = quarantine(tmp_path, ("data-000000.tar", "0000002"))
    config = StreamConfig(str(folder), where=[f"not in {path}"])
    cursor = open_stream("s", config, 3).cursor
    open_stream("s", config, 3, cursor)
    quarantine(tmp_path, ("data-000000.tar", "0000002"), ("data-000000.tar", "0000003"))
    with pytest.raises(DataError, match="samples that pass"):
        open_stream("s", config, 3, cursor)


def test_files_that_cannot_be_meant(folder, tmp_path, caplog):
    with pytest.raises(DataError, match="there is no such file"):
        keys(folder, f"not in {tmp_path}/none.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match="none of its 1 lines has a shard and a key"):
        keys(folder, f"not in {tmp_path}/metrics.jsonl")
    assert len(keys(folder, f"not in {quarantine(tmp_path, ('other.tar', '1'))}")) == sum(SIZES)
    assert "no sample of it is in the file of" in caplog.text
