"""`annotate --tasks codes`: what training would encode, stored once; restartable, verified, counted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from data_prep.__main__ import main
from data_prep.statistics import read_manifest
from data_prep.teachers import tokenizer as teacher
from data_prep.verify import check_sample
from megaunigame.data.decode import CODES_FIELD, decode_sample
from megaunigame.errors import DataError
from megaunigame.models.emu3 import Emu3
from megaunigame.models.janus import Janus
from tests.data.shard_files import encoded, talk, write_tar
from tests.data_prep.stored import content, samples_of
from tests.data_prep.tiny_teachers import picture, write_source
from tests.models.shared import write_clear


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), samples=12, per_shard=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_clear("emu3", tmp_path_factory.mktemp("emu3")).path


def annotate(source: Path, out: Path, *more: str) -> int:
    return main(["annotate", str(source), "--out", str(out), "--batch", "3", "--tasks", "codes", *more])


@pytest.fixture(scope="module")
def whole(source, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert annotate(source, folder, "--model", str(model), "--family", "emu3") == 0
    return folder


def test_codes_are_those_that_training_makes(source, model, whole, capsys):
    """At both sides of the model, 16 for targets and 12 for sources, in both geometries."""
    ours, before = Emu3.load(model, max_length=160), samples_of(source)
    stored = samples_of(whole)
    assert list(stored) == list(before)
    kinds = set()
    for key, fields in stored.items():
        assert {name: fields[name] for name in before[key] if name != "json"} == {
            name: data for name, data in before[key].items() if name != "json"
        }
        assert json.loads(fields["json"]) == json.loads(before[key]["json"])
        sample = decode_sample(key, fields)
        if sample.image is None:
            assert CODES_FIELD not in fields
            continue
        assert sample.codes.tokenizer == ours.tokenizer_identity() and sample.codes.codebook == 48
        assert sorted(sample.codes.grids) == [("crop", 12), ("crop", 16), ("fit", 12), ("fit", 16)]
        for (geometry, side), grid in sample.codes.grids.items():
            pixels = ours.processor.target_pixels(sample.image, geometry, side)
            assert torch.equal(grid.flatten(1), ours.encode_target(pixels[None])) and grid.shape == (1, side // 4, side // 4)
        kinds.add(str(sample.codes.grids["crop", 16].tolist()))
    assert len(kinds) > 5
    about = read_manifest(whole)["config"]["teachers"]["codes"]
    assert about["teacher"] == "tokenizer" and about["tokenizer_sha256"] == ours.tokenizer_identity()
    assert about["squares"] == ["fit.12", "fit.16", "crop.12", "crop.16"]
    assert main(["verify", str(whole)]) == 0
    assert main(["stats", str(whole)]) == 0
    said = capsys.readouterr().out
    assert f"codes of 10 samples: tokenizer {ours.tokenizer_identity()[:12]}..., " in said and "crop at 16 pixels" in said


def test_ranks_and_an_interrupted_run_write_the_same_bytes(source, model, whole, tmp_path, monkeypatch):
    given = ["--model", str(model)]
    encode, calls = teacher.Tokenizer._encoded, []

    def stops(self, *arguments):
        calls.append(1)
        if len(calls) == 6:  # in the second shard
            raise KeyboardInterrupt
        return encode(self, *arguments)

    monkeypatch.setattr(teacher.Tokenizer, "_encoded", stops)
    with pytest.raises(KeyboardInterrupt):
        annotate(source, tmp_path, *given)
    monkeypatch.setattr(teacher.Tokenizer, "_encoded", encode)
    assert annotate(source, tmp_path, *given, "--rank", "1", "--world", "2") == 0
    assert annotate(source, tmp_path, *given, "--rank", "0", "--world", "2") == 0
    same = {name: data for name, data in content(whole).items() if name.endswith(".tar")}
    assert {name: data for name, data in content(tmp_path).items() if name.endswith(".tar")} == same


def test_all_pictures_of_a_sample_have_codes(model, tmp_path):
    said = talk(("<image>\n<image>\nwhich ?", "this"))
    fields = {"jpg": encoded(picture(0, 20, 30), "JPEG"), "picture2.png": encoded(picture(1, 30, 20))}
    broken = fields | {"picture2.png": b"nothing"}
    meta = {"json": json.dumps({"conversations": said}).encode()}
    members = [(f"{n}.{name}", data) for n, given in enumerate((fields, broken)) for name, data in (meta | given).items()]
    write_tar(tmp_path / "in" / "a-000000.tar", members)
    given = ["--model", str(model), "--set", "codes.geometries=squash", "--max-failed-fraction", "0.5"]
    assert annotate(tmp_path / "in", tmp_path / "out", *given) == 0
    (stored,) = samples_of(tmp_path / "out").items()
    sample, ours = decode_sample(*stored), Emu3.load(model, max_length=160)
    assert sorted(sample.codes.grids) == [("squash", 12), ("squash", 16)]
    for number, shown in enumerate(sample.images):
        pixels = ours.processor.target_pixels(shown, "squash", 16)
        assert torch.equal(sample.codes.grids["squash", 16][number].flatten(), ours.encode_target(pixels[None])[0])


def test_codes_that_exist(model, whole, tmp_path, capsys):
    given = ["--model", str(model)]
    assert annotate(whole, tmp_path / "refused", *given) == 2
    assert "already has codes" in capsys.readouterr().err
    assert annotate(whole, tmp_path / "kept", *given, "--existing", "keep", "--set", "codes.geometries=crop") == 0
    assert samples_of(tmp_path / "kept") == samples_of(whole)
    assert annotate(whole, tmp_path / "new", *given, "--existing", "replace", "--set", "codes.geometries=crop") == 0
    first = decode_sample(*next(iter(samples_of(tmp_path / "new").items())))
    assert sorted(first.codes.grids) == [("crop", 12), ("crop", 16)]


def test_another_number_of_pictures_is_a_fault(whole):
    key, fields = next(iter(samples_of(whole).items()))
    sample = decode_sample(key, {**fields, "picture2.jpg": fields["jpg"]})
    with pytest.raises(DataError, match="has codes of 1 pictures and 2 pictures"):
        check_sample(sample)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "needs the folder of the model that will be trained: --model"),
        (["--model", "{model}", "--family", "openuni"], "its pictures are not codes. Families with codes: "),
        (["--model", "{model}", "--family", "emu4"], "Did you mean 'emu3'"),
        (["--model", "nowhere"], "--model nowhere: no such folder. Give the folder of the model that will be trained"),
        (["--model", "{model}", "--set", "codes.geometries=fit+croop"], "Did you mean 'crop'"),
        (["--model", "{model}", "--codes-model", "other"], "codes.model is given twice"),
    ],
)
def test_a_wrong_command_line(source, model, tmp_path, capsys, given, message):
    assert annotate(source, tmp_path / "out", *(part.format(model=model) for part in given)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_of_the_family_that_cannot_be_read_says_why(source, model, tmp_path, capsys):
    """The family is found by config.json, and its own refusal is shown."""
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    assert annotate(source, tmp_path / "out", "--model", str(broken)) == 2
    assert re.search(f"No tokenizer.json in {broken}. The tokenizer of the official release is code", capsys.readouterr().err)


def test_a_folder_of_no_family_with_codes_says_why_for_each(source, model, tmp_path, capsys):
    broken = shutil.copytree(model, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert annotate(source, tmp_path / "out", "--model", str(broken)) == 2
    said = capsys.readouterr().err
    assert f"--model {broken}: no family with codes can read its configuration:" in said
    for family, kinds in {
        "emu3": "an Emu3 folder has 'emu3' or 'Emu3'",
        "chameleon": "a Chameleon folder has 'chameleon'",
    }.items():
        assert f"\n  {family}: {broken / 'config.json'} describes model_type 'llama'; {kinds}." in said


def test_a_folder_that_two_families_can_read_needs_a_name(source, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Janus, "configuration", staticmethod(Emu3.configuration))
    assert annotate(source, tmp_path / "out", "--model", str(model)) == 2
    assert "emu3 and janus can read it. Name the family: --family emu3." in capsys.readouterr().err
