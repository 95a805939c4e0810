"""From a run folder to a model folder and a PEFT adapter that give the trained model's numbers, and on from them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, JanusForConditionalGeneration

import megaunigame
from megaunigame.checkpoint import contents
from megaunigame.checkpoint.adapter_folder import open_adapter
from megaunigame.checkpoint.export import adapter_base, check_out, hub_id
from megaunigame.checkpoint.runs import open_run, step_folder_of
from megaunigame.checkpoint.starting import checked_start, find_start
from megaunigame.checkpoint.trained import saved_learner
from megaunigame.config import LoraConfig
from megaunigame.engine.loading import load_adapter
from megaunigame.errors import CheckpointError, ConfigError, ModelError
from megaunigame.inference.redraws import Redraw
from megaunigame.inference.source import find_source
from megaunigame.models.emu3 import Emu3
from megaunigame.models.janus import Janus
from megaunigame.storage.pending import sha256_of
from tests.multi_process.launcher import REPOSITORY, run_script
from tests.multi_process.tiny_run import write_data, write_model, write_recipe

LORA = {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
TOKENS = torch.arange(5, 25).unsqueeze(0)
STILL = "optimizer.lr=1e-30"
CARD = "---\nlicense: other\nlicense_name: made-up\n---\n# A base\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_model(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    (folder / "model" / "README.md").write_text(CARD)
    (folder / "model" / "LICENSE-MODEL").write_text("do good")
    write_data(folder / "shards")
    for name, model in (("lora", LORA), ("full", {})):
        train(folder, name, model, "schedule.steps=2")
    return folder


def train(home, name, model, *overrides, check=True):
    """A run in `home`/`name`; the path of its model folder is relative to where it starts."""
    recipe = write_recipe(home / f"{name}.yaml", home, model=model, schedule={"steps": 1, "warmup_steps": 0})
    path = os.path.relpath(home / "model", REPOSITORY)
    return run_script("launch/train.py", recipe, f"output={home / name}", f"model.path={path}", *overrides, check=check)


def export(run, *options: object) -> None:
    run_script("launch/export.py", run, *options, check=True)


def exported(home, name, *options: object):
    """The folder of an export, made once."""
    out = home / "out" / f"{name}{''.join(map(str, options))}"
    if not out.exists():
        export(home / name, "--out", out, *(options or ("--dtype", "float32")))
    return out


def refusal(function, *arguments) -> str:
    """What the ConfigError of a call says."""
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return str(caught.value)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_adapters_are_small_and_equal_the_merged_folder(home):
    adapter, merged = exported(home, "lora", "--adapter"), exported(home, "lora")
    base = JanusForConditionalGeneration.from_pretrained(home / "model", dtype=torch.float32).eval()
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(adapter)).eval())
    assert (adapted - logits(JanusForConditionalGeneration.from_pretrained(merged).eval())).abs().max() < 1e-5
    assert (adapted - before).abs().max() > 1e-3, "training changed nothing, so nothing was compared"
    assert (adapter / "adapter_model.safetensors").stat().st_size < (merged / "model.safetensors").stat().st_size / 5
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(home / "model")
    assert type(AutoProcessor.from_pretrained(adapter)).__name__ == "JanusProcessor"


def test_a_run_its_export_and_its_adapters_are_used_alike(home, tmp_path):
    base = megaunigame.load(home / "model", device="cpu")
    run, step_folder = megaunigame.load(home / "lora", device="cpu"), home / "lora" / "checkpoints" / "step-00000002"
    others = [step_folder, exported(home, "lora"), exported(home, "lora", "--adapter")]
    picture, trained = np.full((16, 16, 3), 90, np.uint8), dict(run.network.named_parameters())
    assert any((trained[name] - value).abs().max() > 1e-3 for name, value in base.network.named_parameters())
    for folder in others:
        model = megaunigame.load(folder, device="cpu")
        for name, value in model.network.named_parameters():
            torch.testing.assert_close(value, trained[name], rtol=0, atol=1e-6)
        assert model.ask(picture, "what ?", max_tokens=5) == run.ask(picture, "what ?", max_tokens=5)
        assert model.source.redraws == {"pixel": Redraw("draw this image again .", "crop")} == run.source.redraws
    assert "step 2 of the run" in run.source.what
    places = [home / "model", *others]
    assert len({find_source(place).identity for place in places}) == 4 and base.source.redraws == {}
    assert find_source(step_folder).identity == run.source.identity

    hashed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "sha256_of", lambda path, moved: hashed.append(path.name) or sha256_of(path, moved))
        source = find_source(step_folder)
        assert source.identity and source.open_weights().names() and not hashed
        source.check()
    assert sorted(hashed) == ["learner-rank-00000.safetensors", "learner.json"]

    damaged = shutil.copytree(home / "lora", tmp_path / "damaged")
    file = next(damaged.glob("checkpoints/*2/learner-rank-00000.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for use in (find_source(damaged).check, lambda: megaunigame.load(damaged, device="cpu")):
        with pytest.raises(CheckpointError, match="learner-rank-00000.safetensors has another content"):
            use()

    moved = tmp_path / "adapter"
    shutil.copytree(others[-1], moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "org/base"}))
    assert "belong to the model org/base" in (said := refusal(find_source, moved)) and "--base FOLDER" in said
    assert find_source(moved, base=home / "model").identity == find_source(others[-1]).identity
    write_model(tmp_path / "wider", width=40)
    with pytest.raises(ModelError, match="Give the base that they were trained on"):
        megaunigame.load(moved, base=tmp_path / "wider", device="cpu")


def test_full_export_holds_the_trained_weights(home):
    whole = exported(home, "full")
    model = dict(Janus.load(whole).named_parameters())
    saved = saved_learner(home / "full" / "checkpoints" / "step-00000002")
    assert "lm_head.weight" in saved.layouts and not any("vision_model" in name for name in saved.layouts)
    for name in saved.layouts:
        assert torch.equal(model[name], saved.whole(name))


def test_transformers_loads_the_dtype_of_the_export(home):
    """Also if the base names another one; frozen tokenizers are not rounded."""
    half = exported(home, "full", "--dtype", "bfloat16")
    for folder, dtype in ((exported(home, "full"), torch.float32), (half, torch.bfloat16)):
        assert JanusForConditionalGeneration.from_pretrained(folder).dtype == dtype
    stored, base = load_file(half / "model.safetensors"), load_file(home / "model" / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.bfloat16
    assert all(torch.equal(stored[name], value) for name, value in base.items() if name.startswith("model.vqmodel."))


def test_the_card_says_where_the_model_comes_from(home):
    for folder in (exported(home, "full"), exported(home, "lora", "--adapter")):
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n") and "license: other\nlicense_name: made-up" in card
        assert "schedule:\n  steps: 2" in card and f"| train | {home / 'shards'} |" in card
        assert "was not evaluated after step 2" in card and "from_pretrained" in card
        assert (folder / "LICENSE-MODEL").read_text() == "do good"
    assert "LoRA adapters, alone" in card and "model.adapter=" in card


def test_the_code_of_the_card_runs(home, tmp_path):
    """Each block alone, in a process that cannot import megaunigame."""
    blocks = re.findall(r"```python\n(.+?)```", (exported(home, "full") / "README.md").read_text(), re.DOTALL)
    blocks = [block for block in blocks if "from transformers" in block]
    assert len(blocks) == 2
    blocks += re.findall(r"```python\n(.+?)```", (exported(home, "lora", "--adapter") / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    from PIL import Image

    Image.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / "picture.png")
    for block in blocks:
        code = f"import sys\nsys.modules['megaunigame'] = None\n{block}"
        done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "drawn.png").size == (16, 16)


def test_a_system_prompt_of_any_characters(home, tmp_path):
    """Above U+FFFF, too: the export ends with its card, and its prompts can be tokenized."""
    model = shutil.copytree(home / "model", tmp_path / "model")
    settings = json.loads((model / "processor_config.json").read_text())
    (model / "processor_config.json").write_text(json.dumps(settings | {"system_prompt": "Hi 😀"}))
    for options in ([], ["--adapter"]):
        out = tmp_path / f"out{len(options)}"
        export(home / "lora", "--model", model, "--out", out, *options)
        processor = AutoProcessor.from_pretrained(out)
        prompt = processor.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
        assert "Hi 😀" in processor.tokenizer.decode(processor(text=prompt)["input_ids"][0])
        assert (out / "README.md").is_file()


def test_files_can_be_read_by_whom_the_umask_says(home):
    umask = os.umask(0)
    os.umask(umask)
    for folder in (exported(home, "full"), exported(home, "lora", "--adapter")):
        modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
        assert set(modes.values()) == {0o666 & ~umask}, modes


def test_a_run_is_exported_from_anywhere(home, tmp_path):
    script = [sys.executable, REPOSITORY / "launch" / "export.py"]
    done = subprocess.run([*script, home / "lora", "--out", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    moved = shutil.copytree(home / "lora", tmp_path / "moved")
    record = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(record | {"directory": str(tmp_path)}))
    assert "Type --model FOLDER" in refusal(open_run, step_folder_of(moved))
    assert "Type --base FOLDER (in Python base=FOLDER) with the place" in refusal(find_source, moved)
    assert open_run(step_folder_of(moved), home / "model").model_path == home / "model"


def test_wrong_requests(home, tmp_path):
    for arguments, part in (
        ([home / "full", "--adapter"], "model.train=lora"),
        ([home / "lora", "--step", "9"], "step-00000009"),
    ):
        done = run_script("launch/export.py", *arguments, "--out", tmp_path)
        assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("left", "held"),
    [("model-00001.safetensors", "weights"), ("adapter_config.json", "files"), ("pytorch_model.bin", "files")],
)
def test_a_folder_that_is_not_empty_is_refused(tmp_path, left, held):
    """Of another number of files, say: a reader would find those of the first export."""
    check_out(tmp_path)
    check_out(tmp_path / "new")
    (tmp_path / left).write_bytes(b"")
    assert f"holds {held} already ({left}). Give another --out" in refusal(check_out, tmp_path)
    assert "is a file" in refusal(check_out, tmp_path / left)


def test_both_commands_refuse_it(home):
    used = exported(home, "full")
    before = sorted(used.iterdir())
    for script, options in (
        ("launch/export.py", [home / "full"]),
        ("launch/family.py", ["openuni", "official", "--model", "x"]),
    ):
        done = run_script(script, *options, "--out", used)
        assert done.returncode == 2 and "holds weights already (model.safetensors). Give another --out" in done.stderr
    assert sorted(used.iterdir()) == before


def test_training_goes_on_from_an_adapter(home):
    adapter = exported(home, "lora", "--adapter")
    train(home, "on", LORA, f"model.adapter={adapter}", STILL)
    assert json.loads((home / "on" / "run.json").read_text())["origin"]["adapter"] == str(adapter)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, exported(home, "on", "--adapter")))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("start", ["run", "export"])
def test_training_begins_with_the_weights_of_another_run(home, start):
    """And so do its resumption and its export."""
    place = home / "full" if start == "run" else exported(home, "full")
    resolved = home / "full" / "checkpoints" / "step-00000002" if start == "run" else place
    name = f"from {start}"
    train(home, name, LORA, f"model.weights_from={place}", STILL)
    origin = json.loads((home / name / "run.json").read_text())["origin"]
    assert origin == {"model": str(home / "model"), "weights_from": str(resolved)}
    wanted, found = weights(exported(home, "full")), weights(exported(home, name))
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
    run = open_run(step_folder_of(home / name))
    if start == "export":
        assert adapter_base(run) == place
        return
    assert "Leave out --adapter" in refusal(adapter_base, run)
    done = train(home, name, LORA, "schedule.steps=2", STILL, check=False)
    assert done.returncode == 2 and f"belongs to a run with model.weights_from={place}" in done.stderr
    train(home, name, LORA, f"model.weights_from={place}", "schedule.steps=2", STILL)
    assert step_folder_of(home / name).name == "step-00000002"


def test_weights_of_another_model_are_refused(home, world):
    wide = write_model(home / "wide", width=64)
    with pytest.raises(ModelError, match=r"model.weights_from .* tensors have other shapes"):
        checked_start(Janus, str(home / "model"), str(wide), world)
    with pytest.raises(ModelError, match="tensors have other shapes"):
        checked_start(Janus, str(wide), find_start(str(home / "full")), world)
    with pytest.raises(ConfigError, match="trained model.family=janus; this one is of emu3"):
        checked_start(Emu3, str(home / "model"), find_start(str(home / "full")), world)


def test_starts_that_are_none(home, tmp_path):
    adapter = exported(home, "lora", "--adapter")
    assert f"Type model.adapter={adapter}" in refusal(find_start, str(adapter))
    assert "neither the folder of a run" in refusal(find_start, str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert "has no checkpoint yet" in refusal(find_start, str(tmp_path))
    assert find_start("") == "" and find_start(str(home / "full")) == str(home / "full" / "checkpoints" / "step-00000002")


def test_adapters_that_do_not_fit_are_refused(home, tmp_path, world):
    adapter = exported(home, "lora", "--adapter")
    fitting = {"rank": 4, "alpha": 8.0}
    assert "Type model.lora.rank=4." in refusal(open_adapter, str(adapter), LoraConfig(rank=8))
    assert "Type model.lora.alpha=8." in refusal(open_adapter, str(adapter), LoraConfig(rank=4))
    assert "model.weights_from" in refusal(open_adapter, str(home / "model"), LoraConfig())
    targets = refusal(open_adapter, str(adapter), LoraConfig(**fitting, targets=["q_proj"]))
    assert "Type 'model.lora.targets=[down_proj,gate_proj,k_proj,o_proj,q_proj,up_proj,v_proj]'" in targets
    copy = shutil.copytree(adapter, tmp_path / "less")
    tensors = load_file(copy / "adapter_model.safetensors")
    lost = min(tensors)
    save_file({name: value for name, value in tensors.items() if name != lost}, copy / "adapter_model.safetensors")
    missing = lost.removeprefix("base_model.model.").replace(".weight", ".default.weight")
    model, lora = Janus.load(home / "model"), LoraConfig(**fitting)
    model.add_lora(rank=lora.rank, alpha=lora.alpha, dropout=0.0, targets=lora.targets, seed=0)
    with pytest.raises(ModelError, match=rf"model.adapter=less .*1 missing: {missing}"):
        load_adapter(model, open_adapter(str(copy), lora), "model.adapter=less", world)
    settings = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    assert "Type model.lora.dora=true." in refusal(open_adapter, str(copy), LoraConfig(**fitting))


def test_a_folder_of_the_hub_cache_names_its_model(tmp_path):
    folder = tmp_path / "models--deepseek-ai--Janus-Pro-7B" / "snapshots" / "0a1b"
    assert hub_id(folder) == "deepseek-ai/Janus-Pro-7B" and hub_id(tmp_path) is None
