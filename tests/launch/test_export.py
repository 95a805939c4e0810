"""From a run folder to a model folder and a PEFT adapter that give the trained model's numbers."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import JanusForConditionalGeneration

from megaunigame.checkpoint.export import trained_weights
from megaunigame.models.janus import Janus
from tests.multi_process.launcher import run_script
from tests.multi_process.tiny_run import write_data, write_model, write_recipe

LORA = {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
TOKENS = torch.arange(5, 25).unsqueeze(0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_model(folder / "model")
    write_data(folder / "shards")
    for name, model in (("lora", LORA), ("full", {})):
        recipe = write_recipe(folder / f"{name}.yaml", folder, model=model, schedule={"steps": 2, "warmup_steps": 0})
        run_script("launch/train.py", recipe, f"output={folder / name}", check=True)
    return folder


def export(run, *options: object) -> None:
    run_script("launch/export.py", run, *options, check=True)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_adapters_are_small_and_equal_the_merged_folder(home):
    export(home / "lora", "--out", home / "adapter", "--adapter")
    export(home / "lora", "--out", home / "merged", "--dtype", "float32")
    base = JanusForConditionalGeneration.from_pretrained(home / "model").eval()
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(home / "adapter")).eval())
    merged = logits(JanusForConditionalGeneration.from_pretrained(home / "merged").eval())
    assert (adapted - merged).abs().max() < 1e-5
    assert (adapted - before).abs().max() > 1e-3, "training changed nothing, so nothing was compared"
    adapter, whole = home / "adapter" / "adapter_model.safetensors", home / "merged" / "model.safetensors"
    assert adapter.stat().st_size < whole.stat().st_size / 5


def test_full_export_holds_the_trained_weights(home):
    export(home / "full", "--out", home / "whole", "--dtype", "float32")
    model = dict(Janus.load(home / "whole").named_parameters())
    trained = trained_weights(home / "full" / "checkpoints" / "step-00000002")
    assert "lm_head.weight" in trained and not any("vision_model" in name for name in trained)
    for name, value in trained.items():
        assert torch.equal(model[name], value)


def test_wrong_requests(home, tmp_path):
    for arguments, part in (
        ([home / "full", "--adapter"], "model.train=lora"),
        ([home / "lora", "--step", "9"], "step-00000009"),
    ):
        done = run_script("launch/export.py", *arguments, "--out", tmp_path)
        assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr


def test_a_folder_with_weights_is_refused(home):
    """Of another number of files, say: a reader would find those of the first export."""
    (home / "used").mkdir()
    (home / "used" / "model-00001.safetensors").write_bytes(b"")
    for script, options in (
        ("launch/export.py", [home / "full"]),
        ("launch/family.py", ["openuni", "official", "--model", "x"]),
    ):
        done = run_script(script, *options, "--out", home / "used")
        assert (
            done.returncode == 2 and "used holds weights already (model-00001.safetensors). Give another --out" in done.stderr
        )
    assert len(list((home / "used").iterdir())) == 1
