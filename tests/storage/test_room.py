"""A file that a user names, and that cannot be written."""

from __future__ import annotations

from megaunigame.storage.room import make_room
from tests.refusals import refused


def test_room_is_made_and_what_is_there_stays(tmp_path):
    make_room("--json", tmp_path / "new" / "x.json")
    assert (tmp_path / "new" / "x.json").read_text() == ""
    (tmp_path / "new" / "x.json").write_text("{}")
    make_room("--json", tmp_path / "new" / "x.json")
    assert (tmp_path / "new" / "x.json").read_text() == "{}"


def test_a_place_that_cannot_be_written_is_refused_with_its_option(tmp_path):
    (tmp_path / "file").touch()
    with refused(
        f"--json {tmp_path / 'file' / 'x.json'} cannot be written: a folder on its way is a file. Give another place."
    ):
        make_room("--json", tmp_path / "file" / "x.json")
