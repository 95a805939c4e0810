"""A folder whose pack did not finish is not trained on; the refusal says what to type, and typing it works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from data_prep import shard_writer
from data_prep.__main__ import main
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import DataError
from tests.data.shard_files import write_shards, write_tar
from tests.data_prep.toy_sets import TALK, cc3m, pack_tars, picture


def refused(location: Path | str) -> str:
    with pytest.raises(DataError) as error:
        ShardIndex.open(location)
    return str(error.value)


def pack(folder: Path, damaged: int = 0, *more: str) -> int:
    (folder / "images").mkdir(exist_ok=True)
    entries = [{"id": k, "image": f"{k}.jpg", "conversations": TALK} for k in range(30)]
    (folder / "data.json").write_text(json.dumps(entries))
    for k in range(30):
        (folder / "images" / f"{k}.jpg").write_bytes(picture(k)[: 100 if k < damaged else None])
    files = ["--json", str(folder / "data.json"), "--image-root", str(folder / "images"), "--out", str(folder / "out")]
    return main(["pack", "--format", "llava-json", *files, "--shard-size", "10", *more])


def typed(said: str) -> list[str]:
    """The command that a refusal tells to type."""
    found = re.search(r"Type megaunigame prepare (.*) again", said)
    assert found is not None, said
    return shlex.split(found[1])


def test_too_many_failures(tmp_path, refusal):
    assert "3 of 30 entries failed" in refusal(pack(tmp_path, damaged=3))
    said = refused(tmp_path / "out")
    assert "is not finished: it has no dataset.json (3 of 3 shards are done)" in said and "\n" not in said
    assert "3 entries failed (failures.jsonl): fix them and add --retry-failed, or add --max-failed-fraction 0.1 " in said
    assert refused(f"{tmp_path}/out/*.tar") == said
    assert ShardIndex.open(tmp_path / "out" / "llava-000001.tar").samples == 10  # named as it is
    for command in ("verify", "stats"):
        assert "is not finished" in refusal(main([command, str(tmp_path / "out")]))
    assert main([*typed(said), "--max-failed-fraction", "0.1"]) == 0
    assert ShardIndex.open(tmp_path / "out").samples == 27


def test_pictures_missing_before_the_first_shard(tmp_path, refusal):
    cc3m(tmp_path / "in", tars=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "failures.jsonl").write_text(json.dumps({"key": "a", "reason": "missing file"}) + "\n")
    assert "1 entries failed" in refused(tmp_path / "out")


@pytest.mark.parametrize("renames", [1, 2, 3, 4, 5, 8])
def test_killed_at_any_step(renames, tmp_path, monkeypatch):
    real, done = os.replace, []

    def dies(here: Path, there: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(there)
        real(here, there)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shard_writer.os, "replace", dies)
        pack(tmp_path)
    said = refused(tmp_path / "out")
    assert "of 3 shards are done" in said
    assert main(typed(said)) == 0
    assert ShardIndex.open(tmp_path / "out").samples == 30
    assert not (tmp_path / "out" / "unfinished.json").exists()


def test_a_folder_of_an_earlier_version_has_no_note(tmp_path):
    assert pack(tmp_path) == 0
    (tmp_path / "out" / "dataset.json").unlink()
    (tmp_path / "out" / "llava-000002.tar").unlink()
    assert "(3 shards are done)" in (said := refused(tmp_path / "out"))
    assert "the same `megaunigame prepare` command again" in said


def test_tars_of_other_tools_still_work(tmp_path):
    """With statistics as img2dataset writes them, and any file that happens to have the name of ours."""
    write_shards(tmp_path, [3, 2], index=False, manifest=False)
    (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 3, "successes": 3, "status_dict": {"success": 3}}))
    (tmp_path / "data-000001_stats.json").write_text(json.dumps({"count": 2}))
    (tmp_path / "failures.jsonl").write_text('{"url": "x"}\n')
    assert ShardIndex.open(tmp_path).samples == 5
    (tmp_path / "failures.jsonl").write_text("no json\n")
    assert ShardIndex.open(tmp_path).samples == 5


def test_a_second_pack_into_a_finished_folder_starts_it_again(tmp_path):
    write_tar(tmp_path / "in" / "0.tar", [("a.jpg", picture(1)), ("a.txt", b"x")])
    assert pack_tars(str(tmp_path / "in"), tmp_path / "out") == 0
    finished = shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert pack_tars(str(tmp_path / "in"), tmp_path / "out") == 0  # nothing to do, nothing to note
    assert sorted(path.name for path in finished.iterdir()) == sorted(path.name for path in (tmp_path / "out").iterdir())
