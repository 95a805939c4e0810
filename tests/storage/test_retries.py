import errno
import os

import pytest

from megaunigame.errors import CheckpointError
from megaunigame.storage import disk_errors, json_files, retries
from megaunigame.storage.disk_errors import in_words, may_pass
from megaunigame.storage.retries import retried


@pytest.mark.parametrize(
    ("code", "tries"),
    [
        (errno.EIO, 4),
        (errno.ESTALE, 4),
        (errno.ETIMEDOUT, 4),
        (None, 4),
        (errno.ENOSPC, 1),
        (errno.EACCES, 1),
        (errno.ENOENT, 1),
    ],
)
def test_only_what_may_pass_is_tried_again(monkeypatch, code, tries):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0, 0.0))
    done = []

    def work():
        done.append(1)
        raise OSError(code, "odd")

    with pytest.raises(OSError, match="odd"):
        retried(work)
    assert len(done) == tries
    assert may_pass(OSError(code, "odd")) == (code not in (errno.ENOSPC, errno.EACCES))


def test_the_free_room_may_be_unknown(tmp_path, monkeypatch):
    def fails(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk_errors, "free_bytes", fails)
    assert in_words(OSError(errno.ENOSPC, "full"), tmp_path, 4) == "the disk is full: 4 bytes needed, an unknown number free"


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_is_no_error_of_the_content(tmp_path, monkeypatch, code):
    def fails(*_):
        raise OSError(code, os.strerror(code))

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(json_files, "read_within", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        json_files.read_object(tmp_path / "a.json", "x", CheckpointError, "", disk_errors=True)
    with pytest.raises(CheckpointError):
        json_files.read_object(tmp_path / "a.json", "x", CheckpointError, "")
    with pytest.raises(CheckpointError):
        json_files.read_object(tmp_path / "none.json", "x", CheckpointError, "", disk_errors=True)
