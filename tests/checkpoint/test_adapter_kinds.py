"""rsLoRA, DoRA and the average of the weights: from a training to a merged folder, a PEFT adapter, and back into a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import JanusForConditionalGeneration

from megaunigame.checkpoint import hub
from megaunigame.checkpoint.adapter_folder import AdapterWeights
from megaunigame.checkpoint.export import export_adapter, export_model
from megaunigame.checkpoint.runs import SavedRun, open_run, step_folder_of
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.checkpoint.starting import weights_of_run
from megaunigame.config import EvaluationConfig, as_yaml, load_recipe
from megaunigame.errors import CheckpointError, Interrupted
from megaunigame.inference.source import find_source
from megaunigame.models.janus import Janus
from megaunigame.parallel.mesh import Mesh
from megaunigame.tools.exporting import export
from megaunigame.training import assembly
from megaunigame.training.trainer import Trainer
from tests.checkpoint.test_hub import LocalHub
from tests.multi_process.programs import batches_of, gathered
from tests.multi_process.tiny_run import write_data, write_model, write_recipe
from tests.refusals import refused

TOKENS = torch.arange(5, 25).unsqueeze(0)
BOTH = {"rslora": True, "dora": True}
DECAY = 0.75


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    write_model(folder / "model")
    write_data(folder / "shards")
    return folder


def trainer_of(home: Path, world, name: str, kind: dict[str, bool], *overrides: str, dropout: float = 0.0) -> Trainer:
    lora = {"rank": 4, "alpha": 6, "dropout": dropout, **kind}
    recipe = write_recipe(
        home / "recipe.yaml",
        home,
        model={"train": "lora", "lora": lora},
        optimizer={"lr": 2e-2},
        schedule={"steps": 4, "kind": "constant", "warmup_steps": 0},
        ema={"decay": DECAY},
    )
    return Trainer(load_recipe(str(recipe), [f"output={home / 'runs' / name}", *overrides]), Mesh.of(world))


def trained(home: Path, world, name: str, kind: dict[str, bool], steps: int = 3, **more: Any) -> Trainer:
    trainer = trainer_of(home, world, name, kind, **more)
    batches = batches_of(trainer, steps)
    for _ in range(steps):
        trainer.train_step(batches)
    trainer.saves.finish()
    return trainer


def run_of(trainer: Trainer, *, averaged: bool = False) -> SavedRun:
    base = Path(trainer.recipe.model.path)
    return SavedRun(trainer.folder, trainer.recipe, step_folder_of(trainer.folder), base, "", averaged)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_adapters_in_peft_equal_the_merged_folder_and_the_run(home, world, tmp_path):
    trainer = trained(home, world, "both", BOTH)
    export_adapter(Janus, run_of(trainer), tmp_path / "adapter", str(home / "model"))
    export_model(Janus, run_of(trainer), tmp_path / "merged", torch.float32)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["use_rslora"] and settings["use_dora"]
    base = JanusForConditionalGeneration.from_pretrained(home / "model", dtype=torch.float32).eval()
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval())
    merged = logits(JanusForConditionalGeneration.from_pretrained(tmp_path / "merged").eval())
    assert (adapted - before).abs().max() > 1e-2, "training changed nothing, so nothing was compared"
    assert (adapted - merged).abs().max() < 1e-5
    inside = trainer.learner.module.eval()
    states = inside.language_model(input_ids=TOKENS.to(trainer.world.device)).last_hidden_state
    with torch.no_grad():
        own = torch.nn.functional.linear(states, gathered(inside.lm_head.weight))
    assert (adapted - own).abs().max() < 1e-5


def test_a_run_begins_with_exported_adapters(home, world, tmp_path):
    trainer = trained(home, world, "first", BOTH, steps=1)
    export_adapter(Janus, run_of(trainer), tmp_path / "adapter", str(home / "model"))
    given = f"model.adapter={tmp_path / 'adapter'}"
    second = trainer_of(home, world, "second", BOTH, given)
    ours = {n: gathered(p) for n, p in second.learner.module.named_parameters() if p.requires_grad}
    theirs = {n: gathered(p) for n, p in trainer.learner.module.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys() and any("magnitude" in n for n in ours)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    for kind, key in (({"rslora": True}, "dora"), ({"dora": True}, "rslora")):
        with refused(f"has {key} true", f"Type model.lora.{key}=true."):
            trainer_of(home, world, "third", kind, given)


def test_dora_in_bf16_is_refused(home, world):
    """Its lengths would be rounded in the run, and not in an export."""
    with refused("model.lora.dora=true", "Type engine.precision=fp32"):
        trainer_of(home, world, "rounded", {"dora": True}, "engine.precision=bf16")


def test_what_scales_adapters_cannot_change_on_resume(home, world):
    trained(home, world, "fixed", {"rslora": True}, steps=1)
    with pytest.raises(CheckpointError, match=r"model\.lora\.rslora=True, .* Type model\.lora\.rslora=true to resume"):
        trainer_of(home, world, "fixed", {})
    with pytest.raises(CheckpointError, match="are not in it"):
        trainer_of(home, world, "fixed", {"rslora": True, "dora": True})


def test_dora_begins_with_the_model_and_drops_out(home, world):
    """A weight that ZeRO-3 has released is gathered for its norms: also in the path of dropout, and for the backward."""
    trainer = trainer_of(home, world, "dropout", {"dora": True}, dropout=0.4)
    lengths = {n: gathered(p) for n, p in trainer.learner.module.named_parameters() if "magnitude" in n}
    assert len(lengths) == 2 * 7 and all(length.abs().min() > 0 for length in lengths.values())
    weights = {n: gathered(p) for n, p in trainer.learner.module.named_parameters() if n.endswith("base_layer.weight")}
    for name, length in lengths.items():
        weight = weights[f"{name.partition('.lora_')[0]}.base_layer.weight"]
        assert torch.allclose(length, weight.norm(dim=1), rtol=1e-6)
    losses = [trainer.train_step(batches_of(trainer, 1))["loss/total"] for _ in range(1)]
    assert all(0 < loss < 10 for loss in losses)
    moved = {n: gathered(p) for n, p in trainer.learner.module.named_parameters() if "magnitude" in n}
    assert all(not torch.equal(moved[n], lengths[n]) for n in moved)


def test_the_average_is_exported(home, world, tmp_path):
    """By definition: of the weights after each step, from those of the beginning."""
    trainer = trainer_of(home, world, "average", {"dora": True})
    now = {n: p for n, p in trainer.learner.module.named_parameters() if p.requires_grad}
    average = {n: gathered(p) for n, p in now.items()}
    batches = batches_of(trainer, 3)
    for _ in range(3):
        trainer.train_step(batches)
        average = {n: DECAY * value + (1 - DECAY) * gathered(now[n]) for n, value in average.items()}
    trainer.saves.finish()
    run = run_of(trainer, averaged=True)
    saved = SavedLearner(run.step_folder)
    for name, value in average.items():
        torch.testing.assert_close(saved.whole(name, "ema"), value, rtol=0, atol=1e-6)
    for what, folder in (("average", run), ("last", run_of(trainer))):
        export_model(Janus, folder, tmp_path / what, torch.float32)
        export_adapter(Janus, folder, tmp_path / f"{what} adapter", str(home / "model"))
    janus = JanusForConditionalGeneration
    found = {what: logits(janus.from_pretrained(tmp_path / what).eval()) for what in ("average", "last")}
    base = JanusForConditionalGeneration.from_pretrained(home / "model", dtype=torch.float32).eval()
    adapted = logits(PeftModel.from_pretrained(base, str(tmp_path / "average adapter")).eval())
    assert (found["average"] - found["last"]).abs().max() > 1e-3
    assert (found["average"] - adapted).abs().max() < 1e-5


def test_the_best_step_is_exported_as_an_average_and_uploaded(home, world, tmp_path, monkeypatch, capsys):
    trainer = trained(home, world, "uploaded", BOTH, steps=1)
    trainer.parts.checkpoints.mark_best(1)
    (trainer.folder / "recipe.yaml").write_text(as_yaml(trainer.recipe))
    api, out = LocalHub(tmp_path / "hub"), tmp_path / "out"
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "get_token", lambda: "a token")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    wanted = {"step": "best", "averaged": True, "adapter": True, "push_to": "team/tiny"}
    with refused("--base-id ORG/NAME"):
        export(trainer.folder, out, **wanted)
    assert not out.exists(), "refused before the work"
    assert "their average is exported, which was not measured" in capsys.readouterr().err
    export(trainer.folder, out, base_id="team/base", **wanted)
    assert api.commits == [("team/tiny", "tiny, step 1")]
    assert {file.name for file in (tmp_path / "hub/team/tiny").iterdir()} == {file.name for file in out.iterdir()}
    assert "(exponential moving average of the training)" in (out / "README.md").read_text()
    saved = SavedLearner(step_folder_of(trainer.folder))
    written = AdapterWeights(out)
    assert written.names() == set(saved.layouts)
    assert all(torch.equal(written.read(name), saved.whole(name, "ema")) for name in saved.layouts)


def test_a_best_step_whose_average_was_measured(home, world, tmp_path, capsys):
    """Exported as it was measured, there is nothing to say."""
    trainer = trained(home, world, "measured", {}, steps=1)
    trainer.parts.checkpoints.mark_best(1)
    recipe = dataclasses.replace(trainer.recipe, evaluation=EvaluationConfig(weights="ema"))
    (trainer.folder / "recipe.yaml").write_text(as_yaml(recipe))
    said = "the weights of the step are exported, which were not measured. To export the average, type --ema"
    for number, (step, averaged, warned) in enumerate((("best", False, True), ("best", True, False), (1, False, False))):
        export(trainer.folder, tmp_path / str(number), step=step, averaged=averaged, adapter=True)
        assert (said in capsys.readouterr().err) is warned


def test_the_average_of_a_run_is_used(home, world):
    trainer = trained(home, world, "used", BOTH, steps=1)
    (trainer.folder / "recipe.yaml").write_text(as_yaml(trainer.recipe))
    last, average = find_source(trainer.folder), find_source(trainer.folder, ema=True)
    assert average.identity != last.identity and average.what.startswith("the average of the weights at step 1 of the run")
    expected = weights_of_run(Janus, run_of(trainer, averaged=True))
    name = next(name for name in sorted(expected.names()) if "q_proj" in name and "language" in name)
    found = average.open_weights().read(name)
    assert torch.equal(found, expected.read(name)) and not torch.equal(found, last.open_weights().read(name))


def test_the_average_is_evaluated(home, world, monkeypatch):
    """The weights are back after the evaluation, to the last bit, also when a signal ends it."""
    trainer = trained(home, world, "evaluated", BOTH, steps=1)
    parts, learner = trainer.parts, trainer.learner
    parts.recipe = dataclasses.replace(parts.recipe, evaluation=EvaluationConfig(weights="ema"))

    def whole() -> dict[str, torch.Tensor]:
        return {n: gathered(p) for n, p in learner.module.named_parameters() if p.requires_grad}

    def interrupted(*_: object) -> None:
        raise Interrupted("a signal")

    before, average = whole(), SavedLearner(step_folder_of(trainer.folder))
    monkeypatch.setattr(assembly, "run_evaluation", lambda *_: whole())
    evaluated = parts.evaluate(learner, print)
    assert all(torch.equal(evaluated[n], average.whole(n, "ema")) for n in evaluated)
    assert any(not torch.equal(evaluated[n], before[n]) for n in evaluated)
    monkeypatch.setattr(assembly, "run_evaluation", interrupted)
    with pytest.raises(Interrupted):
        parts.evaluate(learner, print)
    after = whole()
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_an_average_that_begins_or_ends_in_a_resumed_run_is_told_of(home, world, caplog):
    trained(home, world, "begins", {}, steps=1)
    folder = step_folder_of(home / "runs" / "begins")
    without = trainer_of(home, world, "begins", {}, "ema.decay=0")
    assert f"{folder} has an average of the weights, which is dropped: ema.decay is 0." in caplog.text
    without.train_step(batches_of(without, 1))
    without.saves.finish()
    (home / "runs" / "begins" / "recipe.yaml").write_text((home / "recipe.yaml").read_text())
    with refused("has no average of the weights", "Leave out --ema"):
        open_run(step_folder_of(without.folder), averaged=True)
    caplog.clear()
    again = trainer_of(home, world, "begins", {})
    assert "has no average of the weights: it begins with them as they are there." in caplog.text
    for average, master in zip(again.learner.ema.averages, again.learner.masters, strict=True):
        assert torch.equal(average, master.detach())
