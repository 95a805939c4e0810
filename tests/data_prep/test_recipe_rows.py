"""`stats --for RECIPE` and `verify --for RECIPE`: what a recipe finds in shards, before it is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.recipe_rows import Findings, find_rows, print_rows
from megaunigame.config import LoaderConfig, load_recipe
from megaunigame.data.shards.index import ShardIndex
from megaunigame.step.requests import GENERATE, RowRequest
from tests.data_prep.toy_sets import picture

RECIPE = str(Path(__file__).parents[2] / "launch" / "recipes" / "tiny_sft.yaml")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Five samples: four with a picture, one text-only, one whose second question is long; no captions."""
    home = tmp_path_factory.mktemp("rows")
    entries = []
    for number in range(5):
        has_image = number != 3
        if has_image:
            (home / f"{number}.png").write_bytes(picture(20 + number, 16))
        marker = "<image>\n" if has_image else ""
        talk = [{"from": "human", "value": f"{marker}what color is it ?"}, {"from": "gpt", "value": "red ."}]
        if number == 1:
            talk += [{"from": "human", "value": "really " * 400}, {"from": "gpt", "value": "yes ."}]
        entries.append({"id": str(number), "conversations": talk} | ({"image": f"{number}.png"} if has_image else {}))
    (home / "d.json").write_text(json.dumps(entries))
    arguments = ["pack", "--format", "llava-json", "--json", str(home / "d.json"), "--image-root", str(home)]
    assert main([*arguments, "--out", str(home / "shards")]) == 0
    return home / "shards"


def test_every_term_is_counted(shards, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    recipe = load_recipe(RECIPE, ["objectives.understanding.independent=false"])
    found = {one.request.term: one for one in find_rows(recipe, ["scenes"], ShardIndex.open(shards), range(5))}
    counts = {term: (one.filled, one.cut, one.none, one.bad.total()) for term, one in found.items()}
    assert counts == {"understanding": (5, 1, 0, 0), "caption": (0, 0, 5, 0), "pixel": (4, 0, 1, 0)}


def test_the_commands_show_it_and_verify_fails(shards, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(["stats", str(shards), "--for", RECIPE]) == 0
    assert "a run would stop: caption gets no row: the samples lack a picture and a `caption`" in capsys.readouterr().out
    assert main(["verify", str(shards), "--for", RECIPE]) == 1
    capsys.readouterr()
    assert main(["verify", str(shards), "--for", RECIPE, "objectives.generation.caption_rows=0"]) == 0
    assert "would stop" not in capsys.readouterr().out


def test_bad_samples_and_limits(shards, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    drawing = "objectives={unimrg: {stream: scenes, rows: {depth: 2}}}"
    assert not print_rows(shards, [RECIPE, drawing], 100)
    shown = capsys.readouterr().out
    assert "4 x Sample ... has no" in shown and "a run would stop: depth gets no row: Sample ..." in shown
    pixels = "objectives={unimrg: {stream: scenes, rows: {pixel: 2}}}"
    assert print_rows(shards, [RECIPE, pixels], 100)
    assert not print_rows(shards, [RECIPE, pixels, "loader.max_dummy_fraction=0.1"], 100)
    assert "pixel: more dummies than loader.max_dummy_fraction=0.1" in capsys.readouterr().out


def test_pictures_are_read_by_the_rules_of_the_stream(shards, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    pixels = "objectives={unimrg: {stream: scenes, rows: {pixel: 2}}}"
    assert not print_rows(shards, [RECIPE, pixels, "data.scenes.max_pixels=50"], 100)
    assert "1 x Sample '...': field 'jpg'" in (shown := capsys.readouterr().out) and "a run would stop: pixel gets no" in shown


def test_what_a_recipe_allows_stops_no_run(shards, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert print_rows(shards, [RECIPE, "loader.max_dummy_fraction=1"], 100)
    assert "would stop" not in capsys.readouterr().out


def test_what_ends_a_run_is_shown(shards, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    drawing = "objectives={unimrg: {stream: scenes, rows: {depth: 2}, missing: error}}"
    assert not print_rows(shards, [RECIPE, drawing, "loader.max_bad_fraction=1"], 100)
    shown = capsys.readouterr().out
    assert "a run would stop: depth: Sample " in shown and "objectives.unimrg.missing=substitute" in shown


@pytest.mark.parametrize(("fraction", "looked_at", "stops"), [(0.5, 8, True), (0.95, 8, False), (0.95, 108, True)])
def test_few_samples_without_a_row_do_not_prove_that_all_are(fraction, looked_at, stops):
    found = Findings(RowRequest("caption", GENERATE, "s", 1), none=looked_at)
    limits = LoaderConfig(max_dummy_fraction=fraction)
    assert bool(found.refusal(limits, whole=False)) is stops
    assert "gets no row" in found.refusal(limits, whole=True)


def test_codes_for_other_geometries_than_those_of_the_rows(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    janus = str(REPOSITORY / "megaunigame" / "tiny_world" / "weights" / "janus")
    assert main(["annotate", str(shards), "--out", str(tmp_path), "--tasks", "codes", "--model", janus]) == 0
    released = "objectives={unimrg: {stream: scenes, rows: {pixel: 2}}}"
    assert not print_rows(tmp_path, [RECIPE, released], 100)
    shown = capsys.readouterr().out
    assert "a run would stop: pixel" in shown and "needs squash at" in shown and "geometries=fit+crop+squash" in shown
    for enough in ("objectives.unimrg.geometry=crop", "model.stored_codes=partial", "model.stored_codes=off"):
        assert print_rows(tmp_path, [RECIPE, released, enough], 100)


def test_an_unknown_recipe_is_refused(shards, capsys):
    assert main(["stats", str(shards), "--for", os.devnull + "x"]) == 2
    assert "No recipe at" in capsys.readouterr().err


def test_of_several_streams_those_of_the_folder_are_looked_at(shards, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    two = f"data={{talk: {{shards: {shards}}}, drawings: {{shards: elsewhere}}}}"
    given = [RECIPE, two, "objectives.understanding.stream=talk", "objectives.generation.stream=drawings"]
    assert main(["verify", str(shards), "--for", *given]) == 0
    shown = capsys.readouterr().out
    assert "understanding" in shown and "caption" not in shown and "would stop" not in shown
    assert main(["stats", str(shards), "--for", *given, "data.talk.shards=other"]) == 2
    assert "streams talk, drawings, and none of them reads" in capsys.readouterr().err
