"""A step is resumed and exported only on the weights it was trained on, with the factor of its adapters."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import pytest

from megaunigame.checkpoint.base_identity import PIECE_BYTES, PIECES, base_identity
from megaunigame.checkpoint.runs import open_run
from megaunigame.config import LoraConfig, ModelConfig
from megaunigame.errors import CheckpointError, ConfigError, ModelError
from megaunigame.training.resuming import check_first_weights
from megaunigame.training.state import TrainState
from tests.checkpoint.stand_ins import Learner, saved, small_learner  # noqa: F401
from tests.multi_process.tiny_run import write_model, write_recipe


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def test_the_identity_is_that_of_the_content_not_of_the_place(tmp_path, model):
    moved = shutil.copytree(model, tmp_path / "elsewhere" / "other")
    (moved / "README.md").write_text("a note")
    assert len(base_identity(model)) == 64 and base_identity(model) == base_identity(moved)
    other = write_model(tmp_path / "other", seed=1)
    assert base_identity(other) != base_identity(model)
    assert base_identity(model, str(other)) not in {
        base_identity(model),
        base_identity(other),
        base_identity(model, str(model)),
    }
    assert base_identity(tmp_path / "none") == ""


def test_a_changed_layer_of_a_large_file_is_noticed(tmp_path):
    """Also in the middle, and at both ends; a frozen tokenizer in a folder below counts too."""
    folder, size = tmp_path / "model", 8 * PIECES * PIECE_BYTES + 5
    (folder / "vision").mkdir(parents=True)
    file = folder / "model.safetensors"
    content = random.Random(0).randbytes(size)
    file.write_bytes(content)
    (folder / "vision" / "model.safetensors").write_bytes(b"1")
    identities = {base_identity(folder)}
    layer = size // 40
    starts = (0, *range(layer, size - layer, 7 * layer), size - 1)
    for start in starts:
        stop = min(start + layer, size)
        file.write_bytes(content[:start] + bytes(255 - byte for byte in content[start:stop]) + content[stop:])
        identities.add(base_identity(folder))
    assert len(identities) == 1 + len(starts)
    file.write_bytes(content)
    (folder / "vision" / "model.safetensors").write_bytes(b"2")
    assert base_identity(folder) not in identities
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"gone\.safetensors, which is not there"):
        base_identity(folder)


@pytest.mark.fault(
    "resumed with another `model.lora.alpha`, or on another base of the same shapes",
    does="refused before the model is loaded; the line says what to type",
    lost="",
)
def test_other_adapters_or_another_base_are_refused():
    step = "runs/a/checkpoints/step-00000040"
    state = TrainState(step=40, lora=dataclasses.asdict(LoraConfig(alpha=8.0)), base="a" * 64)
    model = ModelConfig(path="models/it", lora=LoraConfig(alpha=8.0, dropout=0.5))
    check_first_weights(step, state, model, "a" * 64)
    check_first_weights(step, state, model, "")  # no folder there: that is said elsewhere
    check_first_weights(step, TrainState(step=40), model, "b" * 64)  # saved before this was written down
    with pytest.raises(CheckpointError, match=r"Type model\.lora\.alpha=8\.0 to resume it"):
        check_first_weights(step, state, dataclasses.replace(model, lora=LoraConfig(alpha=16.0)), "a" * 64)
    with pytest.raises(CheckpointError, match=r"than those now in model\.path=models/it: .*in model\.path"):
        check_first_weights(step, state, model, "b" * 64)


@pytest.mark.usefixtures("small_learner")
def test_an_export_takes_what_the_step_was_trained_with(tmp_path, model):
    """Not what a later launch has written into recipe.yaml."""
    run = tmp_path / "run"
    state = {"step": 1, "start": "", "lora": dataclasses.asdict(LoraConfig(rank=4, alpha=8.0)), "base": base_identity(model)}
    folder = saved(run).save(Learner(), state, 1)
    write_recipe(run / "recipe.yaml", tmp_path, model={"train": "lora", "lora": {"rank": 2, "alpha": 64}, "path": str(model)})
    assert open_run(folder).recipe.model.lora == LoraConfig(rank=4, alpha=8.0)
    write_model(model, seed=1)
    with pytest.raises(ConfigError, match=r"trained on other weights than those that are now in .*Type --model FOLDER"):
        open_run(folder)
    assert open_run(folder, write_model(tmp_path / "back")).step == 1
