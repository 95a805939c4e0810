"""`backend: webdataset` on a hostile tar: what docs/security.md says is checked there."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from megaunigame.data.decode import LARGEST_JSON, decode_sample
from megaunigame.data.sources.webdataset import Pipe
from megaunigame.errors import DataError
from tests.data.shard_files import sample_fields
from tests.faults.hostile_bytes import showable

pytestmark = pytest.mark.timeout(60)


class Runs:
    """Its pickle calls a function."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write(tar: Path, mode: str, marker: Path) -> None:
    members = {
        "../up.json": b"{}",
        "/etc/up.json": b"{}",
        "a\x1b[2J\n.json": b"{}",
        "long.json": b'"' + b"x" * LARGEST_JSON + b'"',
        "pickle.json": pickle.dumps(Runs(marker)),
        "picture.json": b"{}",
        "picture.png": pickle.dumps(Runs(marker)),
        "good.json": sample_fields(0)["json"],
        "good.pkl": pickle.dumps(Runs(marker)),
    }
    with tarfile.open(tar, mode) as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
        for name, kind in (("link.json", tarfile.SYMTYPE), ("hard.json", tarfile.LNKTYPE), ("pipe.json", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            file.addfile(member)


@pytest.mark.fault(
    "a hostile tar under `backend: webdataset`: links, names of other folders, pickles, JSON without an end",
    does="extracts and unpickles nothing; counts bad samples",
    lost="the samples",
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_is_checked_of_a_tar_that_webdataset_reads(tmp_path, monkeypatch, mode):
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "a.tar", mode, tmp_path / "ran")
    monkeypatch.chdir(folder)
    pipe = Pipe(str(folder / "a.tar"), seed=0, shuffle_buffer=1)
    refs = {ref.key: ref for ref in (pipe.find(0, 0) for _ in range(14))}
    assert refs.keys() == {"../up", "/etc/up", "a\ufffd[2J\ufffd", "long", "pickle", "picture", "good"}
    for key in ("long", "pickle", "picture"):
        with pytest.raises(DataError) as refused:
            decode_sample(key, refs[key].read()).decoded()
        assert showable(str(refused.value)) and len(str(refused.value)) < 1000
    decode_sample("good", refs["good"].read()).decoded()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "shards"]
