"""A command that types the same folder in another way is the same command."""

from __future__ import annotations

from tests.checkpoint.stand_ins import Learner, saved


def test_a_request_may_be_typed_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = saved(tmp_path / "run", 10, 20, keep=9)
    typed = "run/checkpoints/step-00000010"
    manager.save(Learner(value=15), {"step": 15, "resume": typed}, 15)
    for again in (typed, f"{typed}/", f"./{typed}", str(tmp_path / typed)):
        assert manager.find(again) == manager.folder / "step-00000015", again
        assert manager.of_the_same_command(again) == str(manager.folder / "step-00000015")
    other = manager.folder / "step-00000020"
    assert manager.find(str(other)) == other
