"""The recipe: strict keys, one owner per number, a batch that multiplies."""

from __future__ import annotations

import json

import pytest

from megaunigame.config import OFF, BatchConfig, as_yaml, load_recipe, resolve_batch
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.errors import ConfigError
from megaunigame.objectives.generation import Generation
from megaunigame.objectives.understanding import Understanding
from megaunigame.settings import fill
from tests.refusals import refused

RECIPE = """
name: test
output: runs/test
model: {path: somewhere}
data: {train: {shards: shards}}
objectives: {understanding: {rows: 2}}
schedule: {steps: 10}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_overrides_and_defaults(recipe_file):
    recipe = load_recipe(recipe_file, ["optimizer.lr=1e-3", "optimizer.group_lr={vision: 0.2}", "batch.accumulation=4"])
    assert (recipe.optimizer.lr, recipe.optimizer.group_lr, recipe.batch.accumulation) == (1e-3, {"vision": 0.2}, 4)
    assert recipe.data["train"].window == 8


def test_stored_codes_are_off_as_the_word_is_typed(recipe_file, tmp_path):
    """YAML reads `off` as a boolean."""
    assert load_recipe(recipe_file, ["model.stored_codes=off"]).model.stored_codes == OFF
    (other := tmp_path / "off.yaml").write_text(RECIPE.replace("path: somewhere", "path: somewhere, stored_codes: off"))
    recipe = load_recipe(str(other), [])
    assert recipe.model.stored_codes == OFF
    other.write_text(as_yaml(recipe))
    assert load_recipe(str(other), []) == recipe
    with refused("model.stored_codes 'True'", "auto, partial, off"):
        load_recipe(recipe_file, ["model.stored_codes=on"])


@pytest.mark.parametrize(
    ("typed", "cures"),
    [
        (["model.pack_tokens=2047"], ["pack_tokens=2047 cannot hold the longest row", "pack_tokens=2048 or more"]),
        (["model.pack_tokens=4096", "model.attention=eager"], ["Type model.attention=sdpa, or model.pack_tokens=0"]),
        (
            ["model.attention=flash_attention_2", "objectives.understanding.independent=true"],
            ["objectives.understanding.independent=true needs a mask", "Type model.attention=sdpa"],
        ),
    ],
)
def test_attention_that_cannot_read_the_rows_is_refused(recipe_file, typed, cures):
    with refused(*cures):
        load_recipe(recipe_file, typed)
    assert load_recipe(recipe_file, ["model.pack_tokens=2048"]).model.pack_tokens == 2048


@pytest.mark.parametrize(
    "override", ["seed=3", "data.train={mix: {a: {shards: x, weight: 3, where: [clip_similarity >= 0.28]}, b: {shards: y}}}"]
)
def test_written_recipe_reads_back(recipe_file, tmp_path, override):
    recipe = load_recipe(recipe_file, [override])
    again = tmp_path / "again.yaml"
    again.write_text(as_yaml(recipe))
    assert load_recipe(str(again), []) == recipe


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lrr=1", ["optimizer", "'lrr'", "'lr'"]),
        ("optimizer.eps=0", ["optimizer.eps", "greater than 0"]),
        ("schedule.min_ratio=-3", ["schedule.min_ratio", "[0, 1]"]),
        ("optimiser.lr=1", ["'optimiser'", "'optimizer'"]),
        ("data.train.shard=x", ["data.train", "'shards'"]),
        ("data.train.where=has image", ["data.train.where"]),
        ("data.train.where=[clip_similarity: 0.28]", ["data.train.where", "clip_similarity", "text"]),
        ("data.train.cache.giga=1", ["data.train.cache", "'gigabytes'"]),
        ("data.train.cache.gigabytes=0", ["data.train.cache.gigabytes", "greater than 0"]),
        ("data.train.mix.a.shards=x", ["data.train", "not both"]),
        ("data.train={}", ["data.train", "`shards`", "`mix`"]),
        ("data.train={mix: {a: {shard: x}}}", ["data.train.mix.a", "'shards'"]),
        ("data.train={mix: {a: {weight: 2}}}", ["data.train.mix.a.shards"]),
        ("data.train={mix: {a: {shards: x, weight: 0}}}", ["data.train.mix.a.weight", "greater than 0"]),
        ("data.train={mix: {a: {shards: x, weight: 0.5}}}", ["data.train.mix.a.weight", "0.5"]),
        ("data.train={mix: {a: {shards: x}}, where: [has image]}", ["data.train", "data.train.mix.NAME.where"]),
        ("schedule.steps=many", ["schedule.steps", "many"]),
        ("schedule.steps=0", ["How long is the run", "schedule.steps=N", "schedule.epochs=N"]),
        ("schedule.steps=-1", ["schedule.steps", "at least 0"]),
        ("schedule.epochs=2", ["schedule.steps=10 and schedule.epochs=2", "schedule.steps=0", "schedule.epochs=0"]),
        ("schedule.epochs_of=train", ["schedule.epochs_of=train", "schedule.epochs"]),
        ("schedule={epochs: 2, warmup_steps: -1}", ["warmup_steps", "-1"]),
        ("schedule.kind=linar", ["schedule.kind", "'linear'"]),
        ("ema.decay=1", ["ema.decay", "[0, 1)"]),
        ("evaluation.weights=ema", ["evaluation.weights=ema", "ema.decay=0.999"]),
        ("checkpoint.best={metric: asking/accuracy, mode: largest}", ["checkpoint.best.mode", "max, min"]),
        ("checkpoint.best.metric=asking/accuracy", ["checkpoint.best.metric=asking/accuracy", "add one to evaluation.suites"]),
        ("early_stop={metric: asking/accuracy, patience: 0}", ["early_stop.patience", "greater than 0"]),
        ("schedule.kind=cosin", ["schedule.kind", "'cosine'"]),
        ("schedule.warmup_steps=11", ["warmup_steps", "0..schedule.steps=10"]),
        ("optimizer.kind=muon", ["optimizer.kind is not supported", "AdamW", "docs/training.md"]),
        ("model.load_in_4bit=true", ["model.load_in_4bit is not supported", "ZeRO-3"]),
        ("model.train=qlora", ["model.train=qlora is not supported", "ZeRO-3", "Type lora"]),
        ("engine.precision=fp16", ["engine.precision=fp16 is not supported", "Type bf16"]),
        ("engine.precision=fp16", ["engine.precision", "bf16, fp32"]),
        ("model.train=everything", ["model.train", "lora, full"]),
        ("loader.workers=-1", ["loader.workers", "-1"]),
        ("optimizer=5", ["optimizer", "mapping"]),
        ("steps", ["'steps'", "key=value"]),
    ],
)
def test_bad_overrides_name_the_key_and_the_cure(recipe_file, override, parts):
    with refused(*parts):
        load_recipe(recipe_file, [override])


def test_missing_recipe_and_missing_value(tmp_path):
    with pytest.raises(ConfigError, match="No recipe at"):
        load_recipe(str(tmp_path / "none.yaml"), [])
    path = tmp_path / "bare.yaml"
    path.write_text("name: x\n")
    with pytest.raises(ConfigError, match="output"):
        load_recipe(str(path), [])


def test_objective_settings_are_strict():
    with pytest.raises(ConfigError, match=r"objectives\.understanding.*'row'.*'rows'"):
        fill(Understanding.Config, {"row": 2}, "objectives.understanding")
    with pytest.raises(ConfigError, match="drop must lie in"):
        Generation(fill(Generation.Config, {"drop": 1.0}, "objectives.generation"))


def test_batch_triple():
    assert resolve_batch(BatchConfig(), 8, 4) == 1
    assert resolve_batch(BatchConfig(accumulation=3), 8, 4) == 3
    assert resolve_batch(BatchConfig(global_rows=64), 8, 4) == 2
    assert resolve_batch(BatchConfig(accumulation=2, global_rows=64), 8, 4) == 2
    with pytest.raises(ConfigError, match=r"8 rows x accumulation 3 x 4 ranks = 96.*batch\.accumulation=2"):
        resolve_batch(BatchConfig(accumulation=3, global_rows=64), 8, 4)
    with pytest.raises(ConfigError, match=r"not a multiple of 24 = 8 rows per micro-step x 3 ranks.*batch\.global_rows=48"):
        resolve_batch(BatchConfig(global_rows=64), 8, 3)
    with pytest.raises(ConfigError, match="at least 1"):
        resolve_batch(BatchConfig(accumulation=0), 8, 4)


def test_ds_config_owns_engine_knobs_only(recipe_file, tmp_path):
    def with_config(content: str):
        path = tmp_path / "ds.json"
        path.write_text(content)
        return load_recipe(recipe_file, [f"engine.ds_config={path}"])

    complete = complete_ds_config(with_config('{"zero_optimization": {"stage": 3}}'), 4, 2)
    assert (complete["train_batch_size"], complete["gradient_accumulation_steps"]) == (8, 4)
    for key in ("optimizer", "bf16", "train_batch_size", "gradient_clipping"):
        with pytest.raises(ConfigError, match=f"'{key}', which the recipe owns"):
            complete_ds_config(with_config(json.dumps({"zero_optimization": {"stage": 3}, key: {}})), 4, 2)
    with pytest.raises(ConfigError, match="stage must be 2 or 3; got 1"):
        complete_ds_config(with_config('{"zero_optimization": {"stage": 1}}'), 4, 2)
    for knob, value, message in (
        ("offload_optimizer", {"device": "nvme"}, r"offload_optimizer\.device=nvme is not supported\. Legal: none, cpu"),
        ("offload_param", {"device": "nvme"}, r"offload_param\.device=nvme"),
        ("offload_optimizer", {"device": "cpu", "ratio": 0.5}, "ratio must be 1"),
        ("mics_shard_size", 4, r"mics_shard_size is not supported.*zero3_hpz\.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            complete_ds_config(with_config(json.dumps({"zero_optimization": {"stage": 3, knob: value}})), 4, 2)
    with pytest.raises(ConfigError, match="is not JSON"):
        complete_ds_config(with_config("{"), 4, 2)
    with pytest.raises(ConfigError, match="no file"):
        complete_ds_config(load_recipe(recipe_file, ["engine.ds_config=nowhere.json"]), 4, 2)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lr=fast", ["'optimizer.lr'", "'fast'", "Legal: greater than 0. Default: 2e-05."]),
        ("schedule.steps=many", ["'schedule.steps'", "'many'"]),
        ("optimizer.betas=[0.9, x]", ["optimizer.betas", "'x'", "[0, 1)"]),
        ("evaluation.every=abc", ["'evaluation.every'", "'abc'"]),
        ("checkpoint.best={min_delta: x}", ["checkpoint.best", "min_delta"]),
    ],
)
def test_a_value_of_another_type_is_told_what_is_legal(override, parts):
    with pytest.raises(ConfigError) as refused:
        load_recipe("tiny_sft", [override])
    assert [part for part in parts if part not in str(refused.value)] == []
