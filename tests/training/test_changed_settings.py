"""What a launch that resumes says of settings that have changed, and of a run that is done."""

from __future__ import annotations

from megaunigame.config import as_yaml, load_recipe
from megaunigame.training.changed_settings import changed_settings, described_changes
from megaunigame.training.resuming import all_done

TINY = "launch/recipes/tiny_sft.yaml"


def changes(folder, *overrides: str, before: tuple[str, ...] = ()) -> str:
    step_folder = folder / "checkpoints" / "step-00000030"
    step_folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(as_yaml(load_recipe(TINY, list(before))))
    return described_changes(step_folder, load_recipe(TINY, list(overrides)))


def test_the_same_recipe_has_not_changed(tmp_path):
    assert changes(tmp_path) == ""


def test_changes_are_counted_and_named(tmp_path):
    assert changes(tmp_path, "optimizer.lr=0.001") == "1 setting changed: optimizer.lr 0.0005 -> 0.001"
    more = changes(tmp_path, "schedule.steps=90", "optimizer.group_lr={lora: 0.5}", "optimizer.betas=[0.9,0.99]")
    assert more == (
        "3 settings changed: optimizer.group_lr {} -> {lora: 0.5}, optimizer.betas [0.9, 0.95] -> [0.9, 0.99], "
        "schedule.steps 60 -> 90"
    )


def test_only_the_first_are_named(tmp_path):
    text = changes(tmp_path, *(f"optimizer.{key}=0.5" for key in ("lr", "eps", "weight_decay", "clip")), "seed=3",
                   "name=other", "schedule.steps=9", "monitor.every=7")  # fmt: skip
    assert text.startswith("8 settings changed: name tiny_sft -> other, seed 0 -> 3, ") and text.endswith(" and 2 more")
    assert text.count("->") == 6


def test_objectives_and_streams_that_come_and_go(tmp_path):
    text = changes(tmp_path, "objectives={understanding: {rows: 8, stream: scenes}}")
    assert "objectives.understanding.independent true -> (none)" in text
    assert "objectives.generation {caption_rows: 4, pixel_rows: 4, stream: scenes} -> (none)" in text
    assert text.startswith("2 settings changed: ")


def test_settings_of_another_version_are_not_changes():
    assert changed_settings({"a": {"old": 1, "b": 2}}, {"a": {"new": 1, "b": 3}}) == ["a.b 2 -> 3"]


def test_a_recipe_that_cannot_be_read_is_said(tmp_path):
    step_folder = tmp_path / "checkpoints" / "step-00000030"
    step_folder.mkdir(parents=True)
    for content in (None, b"\xff\xfe", b"[: {"):
        if content is not None:
            (tmp_path / "recipe.yaml").write_bytes(content)
        said = described_changes(step_folder, load_recipe(TINY, []))
        assert said == f"changed settings are not known: {tmp_path / 'recipe.yaml'} cannot be read"


def test_a_run_that_is_done():
    assert all_done(60, 60) == "60 of 60 steps are done; raise schedule.steps to go on"
    assert all_done(60, 60, in_epochs=True) == "60 of 60 steps are done; raise schedule.epochs to go on"
    assert all_done(59, 60) == ""
    assert all_done(60, 60, in_epochs=True) == "60 of 60 steps are done; raise schedule.epochs to go on"
