"""Every shipped recipe is legal: no misspelt key, no illegal setting, a plan with rows, a model that is built for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from megaunigame.config import load_recipe, resolve_batch
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.errors import ConfigError
from megaunigame.models.emu3_5.tokenizer import open_tokenizer
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.planning.header import Header
from megaunigame.planning.rehearsal import Rehearsal
from megaunigame.planning.workload import workload
from tests.multi_process.launcher import REPOSITORY

LARGE = 30e9
"""Parameters from which a recipe needs ds_configs/zero3_30b.json."""
PACKED = 6.9e9
"""Parameters from which a recipe packs its rows."""
RECIPES = sorted((REPOSITORY / "launch" / "recipes").glob("*.yaml"))


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # recipes name files relative to it


@pytest.fixture(scope="module", autouse=True)
def tokenizers_read_once():
    """Reading the 131,072 picture tokens of Emu3.5 takes ten seconds, and its recipes have ten blocks `model`."""
    read: dict[bytes, PreTrainedTokenizerFast] = {}

    def open_once(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
        content = hashlib.sha256((folder / "tokenizer.json").read_bytes()).digest()
        if content not in read:
            read[content] = open_tokenizer(folder, vocabulary)
        return read[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megaunigame.models.emu3_5.processor.open_tokenizer", open_once)
        yield


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_legal(path):
    recipe = load_recipe(str(path), [])
    assert recipe.name == path.stem
    for settings in recipe.objectives.values():
        clip = settings.get("clip") if settings else None
        if clip and not Path(clip.get("pretrained") or clip["model"]).exists():
            settings["clip"] = None  # the weights are the user's to bring
    plan = build_plan(build_objectives(recipe))
    assert {r.stream for r in plan.requests} - {None} <= set(recipe.data)
    complete_ds_config(recipe, 1, 2)


def test_missing_clip_weights_are_met_before_the_model():
    recipe = load_recipe("launch/recipes/janus_pro_7b_unigame.yaml", [])
    with pytest.raises(ConfigError, match=r"open_clip_model\.safetensors"):
        build_objectives(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_model_of_a_recipe_is_built_for_its_rows(path):
    """On the meta device, for every block `model` in the header: family and size exist, the objectives take the family, groups
    or adapters are chosen, the largest rows are collated, the players begin. The batch can be divided over every cluster."""
    tiny = path.stem.startswith("tiny_")
    ways = [(load_recipe(str(path), []), 2)] if tiny else [(c.recipe, c.cluster.ranks) for c in Header(path).configurations]
    built = []
    for recipe, ranks in ways:
        if recipe.model in built:
            resolve_batch(recipe.batch, build_plan(build_objectives(recipe, planned=True)).rows_per_micro_step(), ranks)
            continue
        built.append(recipe.model)
        with workload(recipe, ranks) as work:
            rehearsal = Rehearsal(work, gradient_checkpointing=True, partitioned=False)
        assert set(rehearsal.largest.inputs) == set(work.plan.passes)
        elements = sum(group.elements for group in rehearsal.shape().groups)
        assert (elements > LARGE) == (Path(recipe.engine.ds_config).name == "zero3_30b.json")
        assert bool(recipe.model.pack_tokens) == (elements > PACKED), "rows of 7 B and more are packed"
        assert tiny or (recipe.model.gradient_checkpointing and work.stage == 3 and elements > 1e9)


def test_recipes_are_named_after_their_sizes():
    """`emu3_8b_aia` trains the size 8b of emu3; the size l of OpenUni is called 3.6B."""
    named = {path.stem: load_recipe(str(path), []).model for path in RECIPES if not path.stem.startswith("tiny_")}
    assert len(named) >= 7
    for name, model in named.items():
        size = "_3_6b_" if (model.family, model.size) == ("openuni", "l") else f"_{model.size.replace('.', '_')}_"
        assert name.startswith(model.family) and size in name, name
