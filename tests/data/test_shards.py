from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest

from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.table import read_table, scan_table
from megaunigame.errors import DataError
from tests.data.shard_files import everything, sample_fields, write_shards, write_tar, written

SIZES = [3, 5, 2]
LISTED = {"samples": 1, "bytes": 1, "index_sha256": 64 * "0"}


@pytest.mark.parametrize(("index", "manifest"), [(True, True), (True, False), (False, False)])
def test_every_field_of_every_sample_is_read(tmp_path, index, manifest):
    shards = ShardIndex.open(write_shards(tmp_path, SIZES, index=index, manifest=manifest))
    assert shards.sizes.tolist() == SIZES and shards.samples == 10
    assert shards.fields == ("depth.png", "json", "png", "seg.png")
    assert everything(shards) == written(SIZES)


def test_scanned_index_equals_the_written_one(tmp_path):
    write_shards(tmp_path, SIZES, manifest=False)
    for tar in sorted(tmp_path.glob("*.tar")):
        assert read_table(tar).digest() == scan_table(tar).digest()
    with_index = ShardIndex.open(tmp_path)
    for path in tmp_path.glob("*.idx.json"):
        path.unlink()
    assert ShardIndex.open(tmp_path).hash == with_index.hash


@pytest.mark.parametrize("listed", [1, 3])
def test_an_index_of_more_or_fewer_samples_than_the_manifest_says_is_refused(tmp_path, listed):
    """Though it is the very index whose hash the manifest has."""
    folder = write_shards(tmp_path, [2])
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["shards"][0]["samples"] = listed
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"lists 2 samples, {listed} were expected"):
        ShardIndex.open(folder).read(0, 0)


@pytest.mark.parametrize("manifest", [True, False])
def test_hash_follows_the_content_and_not_the_folder(tmp_path, manifest):
    one = ShardIndex.open(write_shards(tmp_path / "one", SIZES, manifest=manifest)).hash
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    other = write_shards(tmp_path / "other", SIZES, lambda n: {"json": b"{}"}, manifest=manifest)
    assert ShardIndex.open(tmp_path / "copy").hash == one
    assert ShardIndex.open(other).hash != one


def test_one_tar_and_a_glob(tmp_path):
    write_shards(tmp_path, SIZES)
    assert ShardIndex.open(tmp_path / "data-000001.tar").sizes.tolist() == [5]
    assert ShardIndex.open(f"{tmp_path}/data-00000[12].tar").sizes.tolist() == [5, 2]


def test_text_only_samples_have_fewer_fields(tmp_path):
    folder = write_shards(tmp_path, [4], lambda n: {"json": b"{}"} if n % 2 else sample_fields(n))
    index = ShardIndex.open(folder)
    assert [sorted(index.read(0, i)[1]) for i in range(2)] == [["depth.png", "json", "png", "seg.png"], ["json"]]


def test_few_open_shards_and_another_process(tmp_path):
    index = ShardIndex.open(write_shards(tmp_path, SIZES), open_shards=1)
    assert everything(index) == everything(pickle.loads(pickle.dumps(index))) == written(SIZES)


@pytest.mark.parametrize("make", ["missing", "empty", "no tar"])
def test_nothing_there(tmp_path, make):
    folder = tmp_path / ("nowhere" if make == "missing" else "")
    if make == "no tar":
        (folder / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match="No shards.*megaunigame prepare") as error:
        ShardIndex.open(folder)
    assert str(folder) in str(error.value)


def test_shards_without_samples(tmp_path):
    with pytest.raises(DataError, match="not one sample"):
        ShardIndex.open(write_shards(tmp_path, [0, 0]))


@pytest.mark.parametrize("suffix", [".tar", ".idx.json"])
def test_listed_file_is_missing(tmp_path, suffix):
    write_shards(tmp_path, SIZES)
    (tmp_path / f"data-000001{suffix}").unlink()
    with pytest.raises(DataError, match=rf"data-000001{suffix} is .*missing.*megaunigame prepare"):
        ShardIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("index", "manifest", "words"),
    [(True, True, "dataset.json says"), (True, False, "cut short"), (False, False, "cut short|not a whole")],
)
@pytest.mark.parametrize("keep", [512, 0.3, 0.9])
def test_truncated_shard(tmp_path, index, manifest, words, keep):
    tar = write_shards(tmp_path, [4], index=index, manifest=manifest) / "data-000000.tar"
    # 0.9 of a small tar would only cut its padding: cut relative to the end of its last field.
    end = scan_table(tar).end()
    os.truncate(tar, keep if keep == 512 else int(end * keep))
    with pytest.raises(DataError, match=words) as error:
        ShardIndex.open(tmp_path)
    assert "data-000000.tar" in str(error.value)


def test_shard_cut_between_two_samples(tmp_path):
    tar = write_shards(tmp_path, [4], index=False, manifest=False) / "data-000000.tar"
    end_of_third = max(offset + size for offset, size in scan_table(tar).spans_of(2).values())
    os.truncate(tar, -(-end_of_third // 512) * 512)
    with pytest.raises(DataError, match="was cut short: it has no end"):
        ShardIndex.open(tmp_path)


def test_shard_cut_after_opening(tmp_path):
    index = ShardIndex.open(write_shards(tmp_path, [4]))
    index.read(0, 0)
    os.truncate(tmp_path / "data-000000.tar", index.table(0).end() - 100)
    with pytest.raises(DataError, match="ends inside sample '0000003'"):
        index.read(0, 3)


@pytest.mark.parametrize("how", ["other size", "same size", "removed"])
def test_shard_replaced_while_it_is_closed(tmp_path, how):
    write_shards(tmp_path, [2, 2])
    index = ShardIndex.open(tmp_path, open_shards=1)
    index.read(1, 0)
    index.read(0, 0)  # closes the other
    shard = tmp_path / "data-000001.tar"
    content = shard.read_bytes()
    shard.unlink()
    if how != "removed":
        shard.write_bytes(content + bytes(512 if how == "other size" else 0))
    with pytest.raises(DataError, match=r"data-000001\.tar (can no longer|was replaced|disappeared)"):
        index.read(1, 0)
    with pytest.raises(DataError, match=r"data-000001\.tar (was replaced|disappeared)"):
        index.files.check_unchanged(1)


@pytest.mark.parametrize(
    ("manifest", "content", "words"),
    [
        (True, "{", "dataset.json .*not a manifest"),
        (True, '{"version": 1, "shards": [{"file": "data-000000.tar"}]}', "dataset.json .*not a manifest .*samples"),
        (True, '{"version": 9, "fields": [], "shards": []}', "dataset.json .*version 9"),
        *(
            (
                True,
                json.dumps({"version": 1, "fields": [], "shards": [LISTED | {"file": file}]}),
                "not the name of a .tar file in its folder",
            )
            for file in ("../a.tar", "/a.tar", "b/a.tar", "..", "", "..\\a.tar")
        ),
        (False, "{", "data-000000.idx.json is not a shard index"),
        (False, "[]", "data-000000.idx.json is not a shard index"),
        (False, '{"version": 1, "samples": [{"key": "a"}]}', "data-000000.idx.json is not a shard index"),
        (False, '{"version": 2, "samples": []}', "data-000000.idx.json has version 2"),
    ],
)
def test_broken_manifest_or_index(tmp_path, manifest, content, words):
    write_shards(tmp_path, [2], manifest=manifest)
    (tmp_path / ("dataset.json" if manifest else "data-000000.idx.json")).write_text(content)
    with pytest.raises(DataError, match=words):
        ShardIndex.open(tmp_path)


def test_fields_of_a_sample_that_are_not_adjacent(tmp_path):
    write_tar(tmp_path / "mixed.tar", [(name, b"{}") for name in ("a.json", "b.json", "a.txt")])
    with pytest.raises(DataError, match="sample 'a' are not adjacent"):
        ShardIndex.open(tmp_path)


def test_a_file_of_another_kind_is_told_how_to_become_shards(tmp_path):
    (tmp_path / "talk.jsonl").write_text("{}")
    with pytest.raises(
        DataError, match=r"talk.jsonl is a file of another kind.*data.NAME=\{source: PATH, cache: .*pack --help"
    ):
        ShardIndex.open(tmp_path / "talk.jsonl")
