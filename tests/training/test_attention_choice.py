"""What `model.attention: auto` takes, and which named attention is refused, on machines that are not here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.evaluation.suites.attention import Attention
from megaunigame.evaluation.suites.generation import Generation
from megaunigame.evaluation.suites.questions import Questions
from megaunigame.evaluation.suites.teacher_forced import TeacherForced
from megaunigame.models.base.attention import AttentionNeeds, AttentionSetting, Machine, choose, why_not
from megaunigame.training import attention_choice
from megaunigame.training.attention_choice import settled_attention
from tests.test_config import RECIPE

BOTH = frozenset({"flash-attn", "flash-attn-3"})
A100, H100, V100 = ((8, 0), (9, 0), (7, 0))
B200 = (10, 0)


def setting(capability=H100, packages=BOTH, device="cuda", half=True, packed=True, **needs):
    return AttentionSetting(Machine(device, capability, packages), AttentionNeeds(**needs), half, packed)


@pytest.mark.parametrize(
    ("given", "taken", "reason"),
    [
        (setting(), "flash_attention_3", "its kernel takes packed rows"),
        (setting(A100), "flash_attention_2", "its kernel takes packed rows"),
        (setting(B200), "flash_attention_2", "its kernel takes packed rows"),
        (setting(dropout=0.1), "flash_attention_2", "its kernel takes packed rows"),
        (setting(packages=frozenset({"flash-attn"})), "flash_attention_2", "its kernel takes packed rows"),
        (
            setting(packages=frozenset()),
            "sdpa",
            "flash_attention_3: the package flash-attn-3 is not installed; flash",
        ),
        (setting(V100), "sdpa", "compute capability 8.0 or newer, and this one has 7.0"),
        (setting(half=False), "sdpa", "16 bits"),
        (setting(mask="its turns need one"), "sdpa", "takes no mask, and its turns need one"),
        (setting(packed=False), "sdpa", r"rows side by side \(model.pack_tokens=0\)"),
        (setting((0, 0), device="cpu"), "sdpa", "needs a GPU, and this run is on cpu"),
    ],
)
def test_auto_takes_a_flash_kernel_for_packs_where_it_can_run(given, taken, reason):
    choice = choose(given)
    assert choice.name == taken and not why_not(taken, given)
    with pytest.raises(ConfigError, match=reason):
        raise ConfigError(choice.reason)


def test_all_machines_together_can_what_the_oldest_can():
    machines = [Machine("cuda", H100, BOTH), Machine("cuda", A100, frozenset({"flash-attn"}))]
    assert Machine.least(machines) == machines[1] == Machine.least(machines[::-1])
    assert Machine.here(torch.device("cpu")).capability == (0, 0)


class Family:
    """Rows are causal; no attention is dropped."""

    @classmethod
    def attention_needs(cls, path):
        return AttentionNeeds()


def settled(tmp_path, monkeypatch, *typed, suites=(), machine=None):
    """What a run on two H100 takes, or on `machine` of one of them."""
    there = Machine("cuda", H100, BOTH)
    monkeypatch.setattr(attention_choice.Machine, "here", lambda device: there)
    (file := tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(str(file), ["model.pack_tokens=2048", *typed])
    world = SimpleNamespace(device=torch.device("cuda", 0), all_gather_object=lambda value: [value, machine or there])
    return settled_attention(recipe, dict(suites), Family, "", world)


def test_what_a_recipe_names_stays_or_is_refused(tmp_path, monkeypatch):
    assert settled(tmp_path, monkeypatch) == ("sdpa", "")
    assert settled(tmp_path, monkeypatch, "model.attention=flash_attention_3") == ("flash_attention_3", "")
    older = Machine("cuda", A100, BOTH)
    said = r"model.attention=flash_attention_3 cannot run here: it is for Hopper GPUs.*has 8.0. Type model.attention=sdpa, or"
    with pytest.raises(ConfigError, match=said):
        settled(tmp_path, monkeypatch, "model.attention=flash_attention_3", machine=older)
    with pytest.raises(ConfigError, match="cannot run here: it computes in 16 bits"):
        settled(tmp_path, monkeypatch, "model.attention=flash_attention_2", "engine.precision=fp32")


def test_auto_looks_at_the_rows_of_objectives_and_suites(tmp_path, monkeypatch):
    auto = "model.attention=auto"
    assert settled(tmp_path, monkeypatch, auto).name == "flash_attention_3"
    apart = settled(tmp_path, monkeypatch, auto, "objectives.understanding.independent=true")
    assert apart.name == "sdpa" and "objectives.understanding.independent=true needs one" in apart.reason
    asked = settled(tmp_path, monkeypatch, auto, suites={"q": SimpleNamespace(needs_mask=lambda: "questions_per_row=8")})
    assert asked.name == "sdpa" and "evaluation.suites.q.questions_per_row=8 needs one" in asked.reason
    with pytest.raises(ConfigError, match="takes no mask, and evaluation.suites.q.questions_per_row=8 needs one"):
        flash = "model.attention=flash_attention_2"
        settled(tmp_path, monkeypatch, flash, suites={"q": SimpleNamespace(needs_mask=lambda: "questions_per_row=8")})


@pytest.mark.parametrize(
    ("kind", "settings", "setting"),
    [
        (Questions, {}, "questions_per_row=8"),
        (Questions, {"questions_per_row": 1}, ""),
        (TeacherForced, {}, "terms=[answers,caption]"),
        (TeacherForced, {"terms": ["caption", "pixel"]}, ""),
        (Attention, {"independent": True}, "independent=true"),
        (Attention, {}, ""),
        (Generation, {}, ""),
    ],
)
def test_suites_say_what_needs_a_mask(kind, settings, setting):
    assert kind.needs_mask(SimpleNamespace(config=kind.Config(shards="absent", **settings))) == setting
