"""The suite `attention` and the curves it shares with `megaunigame measure-attention`, on a tiny random Janus."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from megaunigame.attention.targets import Target, read_targets, write_targets
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.evaluation.attention.curves import Measuring, measure
from megaunigame.evaluation.lockstep import collate, read_sample
from megaunigame.evaluation.suites.attention import Attention
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.models.janus import Janus
from megaunigame.registry import find
from megaunigame.settings import fill
from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow
from megaunigame.tools import teacher_attention
from tests.commands.here import run_here
from tests.evaluation.fakes import TEXTS, bright_dark, evaluated, write_tars
from tests.multi_process.launcher import REPOSITORY, run_script
from tests.tiny import write_tiny
from tests.worlds import on_ranks

LAYERS, SAMPLES = 3, 7
SHIPPED = REPOSITORY / "megaunigame" / "tiny_world" / "weights" / "janus"
SCRIPT = REPOSITORY / "launch" / "measure_attention.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, shape = tmp_path_factory.mktemp("janus"), {"num_hidden_layers": LAYERS}
    return write_tiny("janus", path, TEXTS, factor=lambda name: 3.0, text_config=shape).path


@pytest.fixture(scope="module")
def model(folder) -> Janus:
    return Janus.load(folder, max_length=160)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """Seven samples of use for both passes; two of them for one, one for none."""
    samples = bright_dark(SAMPLES)
    samples[2][1].pop("caption")
    samples[4][1].pop("conversations")
    samples[5] = (None, samples[5][1])
    return write_tars(tmp_path_factory.mktemp("shards"), samples)


def evaluate(model, suite, size, folder) -> dict:
    models = [copy.deepcopy(model) for _ in range(size)]
    return evaluated(models, {"attention": suite}, folder)["suites"]["attention"]


@pytest.fixture
def measured(model, shards, tmp_path):
    """`measured(ranks=1, **settings)`: what the suite finds with these settings."""

    def measured(ranks=1, shards=shards, **settings):
        return evaluate(model, Attention(Attention.Config(shards=shards, **settings)), ranks, tmp_path / str(ranks))

    return measured


def test_results_do_not_depend_on_the_number_of_ranks(measured):
    one, three = (measured(ranks, batch=2, targets="relative") for ranks in (1, 3))
    assert one["metrics"].keys() == three["metrics"].keys()
    for name, value in one["metrics"].items():
        assert value == pytest.approx(three["metrics"][name], abs=1e-6), name
        assert math.isfinite(value) and 0 <= value <= SAMPLES
    assert one["metrics"]["understand/rows"] == one["metrics"]["generate/rows"] == SAMPLES - 2


def test_numbers_are_those_of_single_rows(model, measured, shards, tmp_path):
    """The mean over samples of what each sample gives alone; the distance is that of the mean."""
    index = ShardIndex.open(shards)
    model.install_taps()
    alone = []
    for position in (0, 1, 3, 4, 6):  # 2 has no caption, 5 no image
        sample = read_sample(index, position)
        inputs = collate(model, GENERATE, [GenerateRow(sample.meta["caption"], sample.image)], [sample.key], False)
        with torch.no_grad():
            alone.append(model(dataclasses.replace(inputs, taps=Taps((0, 1, 2)))).attention)
    keys = np.stack([a.keys[:, 0].numpy() for a in alone])
    assert keys.std(0).min() > 1e-4, "samples differ, or the spread would say nothing"
    write_targets(tmp_path / "t.yaml", {"generate": [Target(0.1, 0.9), Target(0.1, 0.2), Target(0.1, 0.2)]})
    found = measured(2, targets=str(tmp_path / "t.yaml"))
    metrics = found["metrics"]
    for layer in range(LAYERS):
        assert metrics[f"generate/layer_{layer:02d}"] == pytest.approx(keys[:, layer].mean(), abs=1e-6)
        assert metrics[f"generate/spread_{layer:02d}"] == pytest.approx(keys[:, layer].std(), abs=1e-6)
        first = np.mean([float(a.first[layer, 0]) for a in alone])
        assert metrics[f"generate/first_token_{layer:02d}"] == pytest.approx(first, abs=1e-6)
    distance = np.abs(keys.mean(0) - [0.9, 0.2, 0.2]).mean()
    assert metrics["generate/distance"] == pytest.approx(distance, abs=1e-6)
    assert not any(name.startswith(("understand/target", "understand/distance")) for name in metrics)
    passes, understand, generate = found["tables"]
    assert [row[:2] for row in passes["rows"]] == [["understand", 5], ["generate", 5]]
    assert passes["rows"][0][2] is None and passes["rows"][1][2] == pytest.approx(100 * distance, abs=0.01)
    assert [row[0] for row in generate["rows"]] == ["0", "1", "2"] and generate["rows"][0][3] == 90.0
    assert [row[3] for row in understand["rows"]] == [None] * LAYERS


def test_settings_reach_the_measurement(measured):
    def layers(**settings) -> list[float]:
        found = measured(**settings)["metrics"]
        return [found[f"{name}/layer_00"] for name in settings["passes"]]

    plain = layers(passes=[UNDERSTAND, GENERATE])
    assert layers(passes=[GENERATE]) == pytest.approx(plain[1:])
    without_first, whole = (measured(exclude_bos=flag)["metrics"] for flag in (True, False))
    rest = whole["generate/layer_00"] - whole["generate/first_token_00"]
    assert without_first["generate/layer_00"] == pytest.approx(rest, abs=1e-6)
    compat = layers(passes=[UNDERSTAND, GENERATE], compat=True)
    assert all(abs(a - b) > 1e-4 for a, b in zip(plain, compat, strict=True))
    assert abs(layers(passes=[UNDERSTAND], independent=True)[0] - plain[0]) > 1e-4


def test_rows_that_were_cut_are_not_counted(folder, tmp_path):
    samples = bright_dark(3)
    samples[1][1]["caption"] = "a dark bright thing " * 40
    shards = write_tars(tmp_path / "s", samples)
    model = Janus.load(folder, max_length=100)
    curves = on_ranks(1, lambda world: measure(model, world, ShardIndex.open(shards), Measuring(passes=[GENERATE])))[0]
    assert curves[GENERATE].samples == 2


def test_evaluating_leaves_no_trace(measured):
    before = torch.random.get_rng_state()
    measured()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("lack, name", [("caption", GENERATE), ("conversations", UNDERSTAND), ("image", UNDERSTAND)])
def test_nothing_to_measure(measured, tmp_path, lack, name):
    samples = bright_dark(2)
    for i, (_, meta) in enumerate(samples):
        meta.pop(lack, None)
        samples[i] = (None if lack == "image" else samples[i][0], meta)
    shards = write_tars(tmp_path / "s", samples)
    with pytest.raises(DataError, match=f"Nothing to measure for {name}: .*none of the first 2 samples of .*leave {name} out"):
        measured(2, shards)


def test_a_model_that_cannot_be_measured(model, shards, tmp_path, monkeypatch):
    other = copy.deepcopy(model)
    monkeypatch.setattr(type(other.language_model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    other.language_model.config._attn_implementation = "sdpa"
    with pytest.raises(ModelError, match="cannot be tapped"):
        evaluate(other, Attention(Attention.Config(shards=shards)), 1, tmp_path)


def test_bad_settings(measured, shards):
    assert find("evaluation.suites", "attention", Suite) is Attention
    with pytest.raises(ConfigError, match="'generat'. Did you mean 'generate'"):
        fill(Attention.Config, {"shards": shards, "passes": ["generat"]}, "evaluation.suites.attention")
    with pytest.raises(ConfigError, match="evaluation.suites.attention.passes is empty; name understand or generate"):
        fill(Attention.Config, {"shards": shards, "passes": []}, "evaluation.suites.attention")
    with pytest.raises(ConfigError, match="No targets file nowhere.yaml"):
        Attention(Attention.Config(shards=shards, targets="nowhere.yaml"))
    with pytest.raises(ConfigError, match="'janus'. Did you mean 'janus_pro'"):
        Attention(Attention.Config(shards=shards, targets="janus"))
    with pytest.raises(ConfigError, match="made for 30 layers, and this model has 3"):
        measured(targets="janus_pro")


# megaunigame measure-attention


def command(folder, shards, out, *more: str) -> list[str]:
    given = ["--model", str(folder), "--family", "janus", "--shards", str(shards), "--out", str(out), "--device", "cpu"]
    return [*given, "--max-length", "160", *more]


def test_from_a_teacher_to_a_file(shards, tmp_path):
    """The shipped tiny Janus, in another process."""
    out, plot = tmp_path / "new" / "targets.yaml", tmp_path / "curves.png"
    options = ["--plot", str(plot), "--samples", "4", "--bands", "2", "--dtype", "fp32", "--batch", "3"]
    done = run_script(SCRIPT, *command(SHIPPED, shards, out, *options))
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr and "batches" in done.stderr
    assert "Attention of answers to the picture" in done.stdout and "spread over samples (%)" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    model = Janus.load(SHIPPED, max_length=160)
    targets = read_targets(out, model.install_taps())
    curves = on_ranks(1, lambda world: measure(model, world, ShardIndex.open(shards), Measuring(limit=4)))[0]
    for name, curve in curves.items():
        assert curve.samples == {UNDERSTAND: 4, GENERATE: 3}[name]
        assert len(set(targets[name])) <= 2
        mean = np.mean([goal.target for goal in targets[name]])
        assert mean == pytest.approx(np.mean(curve.mean), abs=0.026)
        assert f"  0  {curve.mean[0]:.3f} +- {curve.spread[0]:.3f}" in out.read_text()


@pytest.mark.parametrize(
    "replaced, error, message",
    [
        (["--family", "januss"], ConfigError, "Did you mean 'janus'"),
        (["--bands", "9"], ConfigError, "9 bands of 3 layers"),
        (["--passes", "attack"], ConfigError, r"Unknown value of passes\[0\] 'attack'"),
        (["--batch", "0"], ConfigError, "batch must be at least 1; got 0"),
        (["--samples", "-1"], ConfigError, "--samples must be at least 0"),
        (["--shards", "nowhere"], DataError, "nowhere"),
        (["--model", "nowhere"], ModelError, "nowhere"),
        (["--family", "base"], ConfigError, "must define exactly one"),
    ],
)
def test_a_wrong_command_line(folder, shards, tmp_path, replaced, error, message):
    with pytest.raises(error, match=message):
        run_here("measure_attention", command(folder, shards, tmp_path / "t.yaml", *replaced))
    assert not (tmp_path / "t.yaml").exists()


def test_a_family_that_cannot_be_measured(folder, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_attention, "find", lambda *name: UnifiedModel)
    with pytest.raises(ModelError, match="attention of family other cannot be measured"):
        run_here("measure_attention", command(folder, shards, tmp_path / "t.yaml", "--family", "other"))


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here("measure_attention", ["--help"])
    assert stopped.value.code == 0 and "megaunigame measure-attention --model" in capsys.readouterr().out
