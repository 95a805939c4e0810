import os

import pytest

from megaunigame.errors import ModelError
from megaunigame.storage import copies
from megaunigame.storage.copies import copy_file


@pytest.mark.fault("a file of a model folder links out of it", does="refuses to copy it into an export", lost="nothing")
def test_an_export_copies_nothing_from_outside(tmp_path):
    (tmp_path / "secret").write_text("s")
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"notes\.txt is a link to .*secret, outside"):
        copy_file(folder / "notes.txt", out)
    assert not out.exists()


def test_a_link_of_the_cache_and_inside_the_folder_is_copied(tmp_path):
    model = tmp_path / "models--a--b"
    folder, blobs = model / "snapshots" / "rev" / "vision", model / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "hash").write_text("of the cache")
    (folder / "config.json").symlink_to("../../../blobs/hash")
    (folder / "inner.json").symlink_to("config.json")
    for name in ("config.json", "inner.json"):
        copy_file(folder / name, tmp_path / name)
        assert (tmp_path / name).read_text() == "of the cache" and not (tmp_path / name).is_symlink()


def test_what_is_no_small_file_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ModelError, match=r"pipe\.txt is not a file"):
        copy_file(tmp_path / "pipe.txt", tmp_path / "out")
    monkeypatch.setattr(copies, "LARGEST", 3)
    (tmp_path / "long.txt").write_text("1234")
    with pytest.raises(ModelError, match="at most 3 bytes"):
        copy_file(tmp_path / "long.txt", tmp_path / "out")
