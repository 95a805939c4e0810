"""Everything a user can get wrong ends before training, with one message that names the cure."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megaunigame.command_line import parsed
from megaunigame.commands.train import train_here
from megaunigame.data.codes import write_codes
from megaunigame.errors import CheckpointError, ConfigError, DataError, DivergenceError, ModelError, UserError
from megaunigame.models.weights.tensor_files import save_tensors
from megaunigame.step.codes import PictureCodes
from megaunigame.storage.pending import PendingFile
from tests.checkpoint.altered import change_state
from tests.data.shard_files import talk, write_shards
from tests.multi_process.launcher import REPOSITORY, free_port, run_script
from tests.multi_process.tiny_run import sample, write_data, write_model, write_recipe


def train(words: list[str]) -> None:
    """`megaunigame train WORDS` in this process, without a hand on its signals."""
    train_here(parsed("train", words))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model, shards, and two runs of two steps that left a checkpoint, one of them with an adversary."""
    folder = tmp_path_factory.mktemp("home")
    write_model(folder / "model")
    write_data(folder / "shards")
    recipe = write_recipe(folder / "recipe.yaml", folder, schedule={"steps": 2, "warmup_steps": 0})
    # In another process: a run that ends well takes its process group down, and deepspeed never forgets one.
    for overrides in ([], [f"output={folder / 'game'}", "objectives={unigame: {clean_rows: 2}}"]):
        run_script("launch/train.py", recipe, *overrides, check=True)
    return folder


def game(settings: str) -> str:
    """Overrides: the game alone, with these settings."""
    return f"objectives={{unigame: {{{settings}}}}}"


CASES = {
    "misspelt key": ("optimizer.lrr=1", ConfigError, ["'lrr'", "Did you mean 'lr'"]),
    "unknown objective": ("objectives={understandin: {rows: 1}}", ConfigError, ["Did you mean 'understanding'"]),
    "unknown family": ("model.family=janos", ConfigError, ["Did you mean 'janus'"]),
    "unknown stream": ("objectives={understanding: {stream: trian}}", ConfigError, ["Did you mean 'train'"]),
    "no rows": ("objectives={understanding: {rows: 0}}", ConfigError, ["at least one row"]),
    "batch triple": ("batch={accumulation: 2, global_rows: 5}", ConfigError, ["does not multiply", "batch.accumulation=1"]),
    "world does not divide": ("batch.global_rows=7", ConfigError, ["multiple of 5", "1 ranks", "batch.global_rows=5"]),
    "another number of ranks": ("engine.expect_ranks=32", ConfigError, ["expect_ranks=32", "this launch has 1", "host file"]),
    "rounded reduction": ("engine.reduce_dtype=bf16", ConfigError, ["engine.reduce_dtype=fp32", "engine.precision=bf16"]),
    "ds_config owns": ("engine.ds_config={home}/owned.json", ConfigError, ["'gradient_clipping'", "optimizer.clip"]),
    "no such shards": ("data.train.shards={home}/nowhere", DataError, ["nowhere"]),
    "empty folder": ("data.train.shards={home}/empty", DataError, ["empty"]),
    "missing shard": ("data.train.shards={home}/missing", DataError, ["data-000001.tar"]),
    "not images": ("data.train.shards={home}/not_images", DataError, ["cannot be used", "png"]),
    "codes of another tokenizer": (
        "data.train.shards={home}/foreign_codes",
        ConfigError,
        ["codes of the tokenizer cccccccccccc...", "that of this model is", "annotate SHARDS", "model.stored_codes=off"],
    ),
    "no conversations": ("data.train.shards={home}/no_talk", DataError, ["conversations"]),
    "tars of another tool": (
        "data.train.shards={home}/raw",
        DataError,
        ["data.train: ", "none of its 16 samples has a json", "megaunigame prepare pack --format wds --source "],
    ),
    "unfinished shards": (
        "data.train.shards={home}/unfinished",
        DataError,
        ["data.train: ", "is not finished", "Type megaunigame prepare pack again"],
    ),
    "source next to shards": ("data.train.source={home}/x.json", ConfigError, ["not both", "data.train={source: "]),
    "source that is not there": (
        "data.train={source: {home}/x.json, cache: {folder: {home}/cache}}",
        DataError,
        ["data.train.source=", "x.json"],
    ),
    "no model": (
        "model.path={home}/nothing",
        ConfigError,
        ["No folder at model.path=", "nothing. Give", "model.weights=random model.size=NAME (tiny, 1b, 7b)"],
    ),
    "weights of another size": ("model.path={home}/mixed_model", ModelError, ["checkpoint of another model"]),
    "flash attention on a CPU": (
        "model.attention=flash_attention_2",
        ConfigError,
        ["model.attention=flash_attention_2 cannot run here", "flash-attn is not installed", "Type model.attention=sdpa"],
    ),
    "compiled under ZeRO-3": (
        "engine.compile=layers",
        ConfigError,
        ["engine.compile=layers cannot run here", "ZeRO-3", "engine.ds_config=ds_configs/zero2.json, or engine.compile=none"],
    ),
    "kernels on a CPU": ("engine.kernels=liger", ConfigError, ["needs a GPU", "Type engine.kernels=none"]),
    "unused group": (
        "objectives={understanding: {rows: 2}}; model.groups=[lm,generation_head]",
        ConfigError,
        ["'generation_head'", "no objective"],
    ),
    "unknown group": ("model.groups=[lmm]", ConfigError, ["'lmm'", "Did you mean 'lm'"]),
    "unknown LoRA target": ("model.train=lora; model.lora.targets=[qproj]", ModelError, ["qproj", "q_proj"]),
    "checkpoint of another model": (
        "output={home}/run; checkpoint.resume=auto; model.groups=[lm]",
        CheckpointError,
        ["another model or to other trained groups"],
    ),
    "truncated checkpoint": ("output={home}/truncated", CheckpointError, ["damaged", "its manifest says"]),
    "no checkpoint there": ("checkpoint.resume={home}/empty", CheckpointError, ["not a complete checkpoint"]),
    "other world size": ("output={home}/other_world", CheckpointError, ["saved by 8 ranks with 40 rows", "1, 2, 4, 8"]),
    "other shards on resume": (
        "output={home}/run; data.train.shards={home}/other_shards",
        DataError,
        ["index hash", "resume=never"],
    ),
    "other window on resume": ("output={home}/run; data.train.window=3", DataError, ["window 2, this run has 3"]),
    "other seed on resume": ("output={home}/run; seed=9", DataError, ["seed 5, this run has 9"]),
    "no attack budget": (game("adversary: {kind: perturber, eps_max: 0}"), ConfigError, ["eps_max", "greater than 0"]),
    "unknown adversary": (game("adversary: {kind: perturbr}"), ConfigError, ["Did you mean 'perturber'"]),
    "setting of another adversary": (game("adversary: {kind: noise, hidden: 3}"), ConfigError, ["'hidden'", "eps_max"]),
    "noise as a path": (game("path: noise"), ConfigError, ["adversary.kind=noise"]),
    "CLIP threshold": (game("clip: {model: tiny-random, tau: 2}"), ConfigError, ["tau", "2"]),
    "no CLIP weights": (game("clip: {pretrained: {home}/nothing.safetensors}"), ConfigError, ["nothing.safetensors"]),
    "percentile": (game("buffer: {percentile: 100}"), ConfigError, ["[0, 100)", "100"]),
    "replay without attacks": (game("attack_rows: 0"), ConfigError, ["hard_rows=0"]),
    "buffer of another shape": (
        "output={home}/game; model.max_length=104; " + game("clean_rows: 2"),
        CheckpointError,
        ["96", "104", "resume=never"],
    ),
    "adversary of another size": (
        "output={home}/game; " + game("adversary: {kind: perturber, hidden: 8}"),
        CheckpointError,
        ["another game", "objectives.unigame.adversary.hidden=256, this run has 8"],
    ),
    "checkpoint without a game": ("output={home}/run; " + game("clean_rows: 2"), CheckpointError, ["another"]),
    "layer out of range": ("objectives.aia.layers=[0,2]", ConfigError, ["2 is not a layer", "0 to 1"]),
    "targets of another depth": ("objectives.aia.targets=janus_pro", ConfigError, ["30 layers", "this model has 2"]),
    "targets file of another depth": (
        "objectives.aia.targets={home}/deep.yaml",
        ConfigError,
        ["targets for 12 layers", "this model has 2"],
    ),
    "no targets file": ("objectives.aia.targets={home}/none.yaml", ConfigError, ["none.yaml", "measure-attention"]),
    "attention alone": ("objectives={aia: {}}", ConfigError, ["at least one row"]),
    "term that nobody has": ("objectives.aia.terms=[captions]", ConfigError, ["Did you mean 'caption'"]),
    "measured weights on resume": (
        "output={home}/run; objectives.aia.preset=auto; objectives.aia.targets=relative",
        CheckpointError,
        ["no measured weights of AIA", "preset=code"],
    ),
    "random weights on resume": (
        "output={home}/run; model.weights=random",
        CheckpointError,
        ["model.weights=pretrained, this one has model.weights=random", "resume=never"],
    ),
    "a checkpoint of random weights": ("output={home}/random_run", CheckpointError, ["run with model.weights=random"]),
    "random weights without a shape": (
        "model.weights=random; model.path={home}/nothing",
        ConfigError,
        ["nothing", "model.size=NAME (tiny, 1b, 7b)"],
    ),
    "unknown size": ("model.weights=random; model.size=tinny", ConfigError, ["'tinny'", "Did you mean 'tiny'"]),
    "unknown size next to a folder": ("model.size=tinny", ConfigError, ["'tinny'", "Did you mean 'tiny'"]),
    "pictures longer than a row": ("model.max_length=12", ConfigError, ["model.max_length=12 leaves", "or more"]),
    "a shape without weights": ("model.path=''; model.size=tiny", ConfigError, ["model.size=tiny", "model.weights=random"]),
    "no path": ("model.path=''", ConfigError, ["`model.path` is missing"]),
    "other kind of weights": ("model.weights=ramdom", ConfigError, ["Did you mean 'random'"]),
    "unknown suite": ("evaluation.suites={question: {shards: x}}", ConfigError, ["Did you mean 'questions'"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong_things(home: Path) -> Path:
    (home / "owned.json").write_text('{"zero_optimization": {"stage": 3}, "gradient_clipping": 1.0}')
    (home / "deep.yaml").write_text("depth: 12\ngenerate:\n  - {layers: [0, 11], delta: 0.1, target: 0.4}\n")
    (home / "empty").mkdir()
    write_shards(home / "missing", [8, 8], fields=sample)
    (home / "missing" / "data-000001.tar").unlink()
    write_shards(home / "not_images", [8, 8], fields=lambda number: {**sample(number), "png": b"this is not a picture"})
    codes = PictureCodes("c" * 64, 32, {("crop", 16): torch.zeros(1, 2, 2, dtype=torch.long)})
    write_shards(home / "foreign_codes", [8, 8], fields=lambda number: {**sample(number), "codes.bin": write_codes(codes)})
    write_shards(home / "no_talk", [8, 8], fields=lambda number: {**sample(number), "json": b'{"caption": "x"}'})
    write_shards(home / "raw", [16], fields=lambda number: {"png": b"", "txt": b""}, manifest=False)
    write_shards(home / "unfinished", [8, 8], fields=sample, manifest=False)
    (home / "unfinished" / "unfinished.json").write_text('{"command": "megaunigame prepare pack", "shards": 3}')
    write_shards(home / "other_shards", [16, 16], fields=sample)
    mixed = write_model(home / "mixed_model", width=64)
    shutil.copy(home / "model" / "model.safetensors", mixed / "model.safetensors")
    for name in ("truncated", "other_world", "random_run"):
        shutil.copytree(home / "run", home / name)
    step = home / "truncated" / "checkpoints" / "step-00000002"
    shard = step / "learner-rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    change_state(home / "other_world" / "checkpoints" / "step-00000002", ranks=8, rows_per_step=40)
    change_state(home / "random_run" / "checkpoints" / "step-00000002", weights="random")
    return home


@pytest.mark.parametrize("case", CASES)
def test_ends_before_training(case, wrong_things, tmp_path):
    overrides, error, parts = CASES[case]
    settings = [o.replace("{home}", str(wrong_things)) for o in overrides.split("; ")]
    recipe = write_recipe(tmp_path / "recipe.yaml", wrong_things, schedule={"steps": 4, "warmup_steps": 0})
    if not any(o.startswith("output=") for o in settings):
        settings.append(f"output={tmp_path / 'run'}")
    with pytest.raises(UserError) as caught:
        train([str(recipe), *settings])
    assert isinstance(caught.value, error), caught.value
    for part in parts:
        assert part in str(caught.value)
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or metrics.read_text() == "", "it trained before it failed"


def test_a_family_without_a_decoder_is_told_which_have_one(home, tmp_path, monkeypatch):
    monkeypatch.setattr("megaunigame.models.janus.model.Janus.has_decoder", False)
    recipe = write_recipe(tmp_path / "recipe.yaml", home, objectives={"unigame": {"clean_rows": 2}})
    with pytest.raises(ConfigError, match=r"'janus' has no differentiable decoder.*unigame\.path=embedding"):
        train([str(recipe), f"output={tmp_path / 'run'}"])


def test_exit_code_and_one_message(home, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", home)
    done = run_script("launch/train.py", recipe, "schedule.kind=cosin")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("ConfigError: ") and "'cosine'" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_trains_only_where_it_was_told_to(home, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", home, output=str(tmp_path / "run"))
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = run_script("launch/train.py", recipe, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ConfigError: No GPU can be used: torch") and "type DS_ACCELERATOR=cpu before" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.ranks
def test_exit_code_under_the_deepspeed_launcher(home, tmp_path):
    batch = {"accumulation": None, "global_rows": 15}
    recipe = write_recipe(tmp_path / "recipe.yaml", home, batch=batch, output=str(tmp_path / "run"))
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    done = subprocess.run(
        [launcher, "--num_gpus", "2", "--master_port", str(free_port()), "launch/train.py", str(recipe)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert said.count("ConfigError: batch.global_rows=15 is not a multiple of 10 = 5 rows per micro-step x 2 ranks.") == 1


@pytest.mark.fault("learning rate far too large", does="skips a few updates, then stops", lost="since the last checkpoint")
def test_a_diverging_run_stops_and_names_the_rows(home, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", home, optimizer={"lr": 1e30, "clip": 1e30})
    text = (
        r"not finite in step 5; nothing was updated.*rank 0: 00000.*smaller optimizer\.lr \(it is 1e30, .*it begins at step 1"
    )
    with pytest.raises(DivergenceError, match=text):
        train([str(recipe), f"output={tmp_path / 'run'}"])
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["optim/skipped"] for line in metrics if "optim/skipped" in line] == [0, 1, 2, 3]


def test_a_run_that_diverges_while_a_save_is_written_names_that_save(home, tmp_path, monkeypatch):
    write = PendingFile.write
    monkeypatch.setattr(PendingFile, "write", lambda *given: time.sleep(0.3) or write(*given))
    settings = {"optimizer": {"lr": 1e30, "clip": 1e30}, "checkpoint": {"every": 4}}
    recipe = write_recipe(tmp_path / "recipe.yaml", home, **settings)
    with pytest.raises(DivergenceError, match=r"it goes on from \S*/run/checkpoints/step-00000004\."):
        train([str(recipe), f"output={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "checkpoints" / "step-00000004" / "manifest.json").is_file()


@pytest.mark.fault("NaN in a weight of the model folder", does="stops before an update and names the weight", lost="nothing")
def test_a_weight_that_is_not_finite_is_named(home, tmp_path):
    shutil.copytree(home / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "vision" in name and name.endswith("v_proj.weight"))
    weights[name].view(-1)[0] = math.nan
    save_tensors(weights, file)
    recipe = write_recipe(tmp_path / "recipe.yaml", home, model={"path": str(tmp_path / "model"), "groups": ["lm"]})
    text = rf"A weight is not finite in step 1: {re.escape(name)} \(frozen, 1 of .* elements\)\. No update changes.*again, then"
    with pytest.raises(DivergenceError, match=text) as raised:
        train([str(recipe), f"output={tmp_path / 'run'}"])
    assert "Samples:" not in str(raised.value) and "optimizer" not in str(raised.value)


def test_a_term_that_no_sample_fills_ends_the_run(home, tmp_path):
    def without_caption(number):
        return {**sample(5 * number + 1), "json": json.dumps({"conversations": talk(("q", "a"))}).encode()}

    write_shards(tmp_path / "no_captions", [16], fields=without_caption)
    recipe = write_recipe(tmp_path / "recipe.yaml", home)
    given = [f"data.train.shards={tmp_path / 'no_captions'}", f"output={tmp_path / 'run'}"]
    rows = "objectives={understanding: {rows: 2}, generation: {caption_rows: 5}}"
    with pytest.raises(DataError, match=r"'caption' got none of its first 10 rows.*'train' lack a picture and a `caption`"):
        train([str(recipe), *given, rows])
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
