from __future__ import annotations

import io
import tarfile
from collections import Counter

import pytest

from megaunigame.config import MixedConfig, StreamConfig
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.shards.foreign import pack_command
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import ConfigError, DataError
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from tests.data.shard_files import number_batches, overwrite, sample_fields, stored_cursors, write_shards, write_tar

SIZES = [9, 4, 11, 6]
PLAN = StepPlan((RowRequest("answer", UNDERSTAND, "s", 2),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, index=False, manifest=False)


def batches(shards: str, rank=0, world_size=1, cursor=None, buffer=5) -> MicroBatches:
    config = StreamConfig(shards, backend="webdataset", shuffle_buffer=buffer)
    streams = {"s": open_stream("s", config, 3, cursor)}
    return number_batches(PLAN, streams, rank=rank, world_size=world_size)


def numbers(dataset: MicroBatches, steps: int, workers: int = 0) -> list[int]:
    loaded = MicroBatchLoader(dataset, 0, steps, workers)
    return [n for batch in loaded for n in batch.inputs[UNDERSTAND].tokens[:, 0].tolist()]


def braces(folder) -> str:
    return f"{folder}/data-{{000000..000003}}.tar"


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_of_all_shards_come_without_end_and_repeatably(folder, workers):
    seen = numbers(batches(braces(folder)), 150, workers)
    assert len(seen) == 300 and set(seen) == set(range(sum(SIZES)))
    assert seen == numbers(batches(braces(folder)), 150, workers)
    assert any(b != a + 1 for a, b in zip(seen[:8], seen[1:9], strict=True))


def test_a_command(folder):
    seen = numbers(batches(f"pipe:cat {folder}/data-00000{{0..3}}.tar"), 60)
    assert set(seen) <= set(range(sum(SIZES))) and len(set(seen)) > 11


def test_one_shard_serves_many_ranks_and_workers(folder):
    one = f"{folder}/data-000001.tar"
    for rank in range(3):
        seen = Counter(numbers(batches(one, rank, 3), 40, workers=2))
        assert sum(seen.values()) == 80 and set(seen) == set(range(9, 13))


def test_ranks_workers_and_resumed_runs_draw_for_themselves(folder):
    first = numbers(batches(braces(folder), 0, 2), 40)
    assert numbers(batches(braces(folder), 1, 2), 40) != first
    cursor = stored_cursors(batches(braces(folder), 0, 2).cursors(40))["s"]
    assert cursor.position == 160
    assert numbers(batches(braces(folder), 0, 2, cursor), 40) != first
    halves = numbers(batches(braces(folder)), 40, workers=2)
    assert [halves[i : i + 2] for i in range(0, 80, 4)] != [halves[i : i + 2] for i in range(2, 80, 4)]


def test_bad_samples_and_cut_shards_are_counted_and_replaced(tmp_path):
    write_shards(tmp_path, SIZES)
    overwrite(tmp_path, 10, "png")
    cut = tmp_path / "data-000002.tar"
    cut.write_bytes(cut.read_bytes()[:9000])
    dataset = batches(f"{braces(tmp_path)}::{tmp_path}/missing.tar")
    loaded = [dataset[n] for n in range(100)]
    bad = {(b.key, b.shard.rpartition("/")[2]) for batch in loaded for b in batch.bad}
    assert bad == {("0000010", "data-000001.tar"), ("", "data-000002.tar"), ("", "missing.tar")}
    seen = {n for batch in loaded for n in batch.inputs[UNDERSTAND].tokens[:, 0].tolist()}
    assert 10 not in seen and set(range(9)) <= seen


@pytest.mark.parametrize("shards", ["{folder}/missing-{000000..000003}.tar", "pipe:false"])
def test_nothing_but_failures_ends_the_run(tmp_path, shards):
    with pytest.raises(DataError, match="substitutes cannot be used"):
        batches(shards.replace("{folder}", str(tmp_path)), buffer=1000)[0]


NEEDS_AN_INDEX = r"data\.train: .*need an index.*backend=webdataset"


@pytest.mark.parametrize(
    ("shards", "settings", "words"),
    [
        ("x", {"where": ["has image"]}, NEEDS_AN_INDEX),
        ("x", {"mix": {"a": MixedConfig("x")}}, NEEDS_AN_INDEX),
        ("x", {"backend": "wds"}, r"data\.train\.backend.*'wds'.*index, webdataset\."),
        ("::", {}, "names no tar.*pipe:cat"),
    ],
    ids=["filters", "mixes", "a wrong backend", "no tar"],
)
def test_settings_that_cannot_be_streamed_are_refused(shards, settings, words):
    with pytest.raises(ConfigError, match=words):
        open_stream("train", StreamConfig(shards, **{"backend": "webdataset", **settings}), 3)


def test_a_cursor_of_this_backend_is_not_one_of_another(folder):
    with pytest.raises(DataError, match="backend webdataset, this run has not set"):
        open_stream("s", StreamConfig(str(folder)), 3, batches(braces(folder)).cursors(1)["s"])


def test_tars_without_json_end_the_run_with_the_command_that_packs_them(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{k}.{field}", b"x") for k in range(3) for field in ("jpg", "txt")])
    with pytest.raises(
        DataError, match=r"has no json.*jpg, txt.*megaunigame prepare pack --format wds --source .*0\.tar --out "
    ):
        batches(f"{tmp_path}/0.tar")[0]


def test_tars_of_a_folder_that_is_not_finished_are_refused(tmp_path):
    write_shards(tmp_path, SIZES, manifest=False)
    assert batches(braces(tmp_path))
    (tmp_path / "unfinished.json").write_text('{"command": "megaunigame prepare pack", "shards": 5}')
    with pytest.raises(DataError, match="is not finished.*Type megaunigame prepare pack again"):
        batches(braces(tmp_path))
    assert batches(f"{tmp_path}/data-000001.tar")


def fields_under_other_names(number: int) -> dict[str, bytes]:
    fields = sample_fields(number)
    return {"json": fields["json"], "img": fields["png"], "picture2.png": fields["png"]}


@pytest.mark.parametrize("backend", ["webdataset", "index"])
def test_pictures_under_names_that_a_run_does_not_read_are_named(backend, tmp_path, caplog):
    write_shards(tmp_path / "in", [3], fields_under_other_names, index=False, manifest=False)
    stream = open_stream("s", StreamConfig(str(tmp_path / "in" / "data-000000.tar"), backend=backend, shuffle_buffer=2), 3)
    for position in range(8):
        stream.source.find(position, 0)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "does not read the fields img (3 samples). If" in said[0] and "pack --format wds" in said[0]


def test_a_command_that_cannot_be_packed_is_not_advised():
    assert "--source FOLDER --out FOLDER-packed" in pack_command("pipe:cat x.tar") == pack_command("s3://b/x.tar")


@pytest.mark.parametrize("backend", ["webdataset", "index"])
def test_names_that_are_not_utf8_are_read(backend, tmp_path):
    members = [(f"{key}.{field}", data) for key in ("k\udce4se", "k\udcf6se") for field, data in sample_fields(1).items()]
    with tarfile.open(tmp_path / "0.tar", "w", encoding="utf-8", errors="surrogateescape", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    stream = open_stream("s", StreamConfig(str(tmp_path / "0.tar"), backend=backend, shuffle_buffer=1), 3)
    for position in range(2):
        found = stream.source.find(position, 0)
        assert found.key == "k\ufffdse" and found.read()["png"] == sample_fields(1)["png"]
