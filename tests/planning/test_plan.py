"""Plans: what is counted on the meta device, and the verdict that is drawn from it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.models.causal import CausalModel
from megaunigame.passes import GENERATE, RowRequest, plan_from
from megaunigame.planning.advice import advice
from megaunigame.planning.flops import pass_flops
from megaunigame.planning.machines import cluster
from megaunigame.planning.meta_model import meta_model
from megaunigame.planning.plan import Plan, make_plan
from megaunigame.registry import find

REPOSITORY = Path(__file__).parents[2]
WHOLE = ["engine.ds_config=ds_configs/zero2.json"]
"""Weights that no coordinator gathers: a plan that needs no process group, so that it can be made in a test."""


def tiny(name: str, *overrides: str, ranks: int = 2) -> Plan:
    recipe = load_recipe(str(REPOSITORY / f"launch/recipes/{name}.yaml"), [*WHOLE, *overrides])
    return make_plan(recipe, cluster("h100-80g", 1, ranks))


@pytest.fixture(scope="module")
def full() -> Plan:
    return tiny("tiny_unimrg", "model.train=full", "model.path=absent", "model.size=tiny", ranks=3)


def linear_flops(model: CausalModel, tokens: int) -> int:
    """Of the matrices of the decoder layers: 2 operations per element and token."""
    layers = model.language_model.layers
    return 2 * tokens * sum(p.numel() for p in layers.parameters() if p.dim() == 2)


@pytest.mark.parametrize("trained", [True, False])
def test_operations_of_a_pass_follow_from_its_matrices(tmp_path: Path, trained: bool) -> None:
    family = find("models", "emu3", CausalModel)
    family.write_size("tiny", tmp_path)
    processor = family.open_processor(str(tmp_path), max_length=200)
    inputs = processor.largest(plan_from([RowRequest("pixels", GENERATE, "scenes", 3)]), GENERATE)
    model = meta_model(
        family, str(tmp_path), processor, attention="sdpa", gradient_checkpointing=False, precision="bf16"
    ).requires_grad_(trained)
    layers, head = model.language_model.layers, model.lm_head
    for part in (layers[-1].mlp, head):
        part.requires_grad_(True)
    tokens = 3 * (inputs.tokens.shape[1] + processor.behind_prompt)
    counted = pass_flops(model, GENERATE, inputs)
    matrices = linear_flops(model, tokens)
    assert counted.forward > matrices
    if trained:  # two products of the backward for each of the forward, and attention on top
        assert counted.backward > 2 * matrices
    else:  # only the last block is walked back
        assert counted.backward < matrices


def test_states_of_a_rank_are_slices(full: Plan) -> None:
    elements = sum(elements for elements, _ in full.shape.parameters)
    trained = sum(elements for elements, is_trained in full.shape.parameters if is_trained)
    assert full.elements_per_rank == elements and full.memory["weights"] == 2 * elements, "ZeRO-2 keeps weights whole"
    sliced = full.memory["gradients"] // 4
    assert trained / 3 <= sliced < trained / 3 + len(full.shape.parameters)
    assert full.memory["optimizer"] == 3 * full.memory["gradients"]
    assert full.reduced == 4 * trained
    assert full.total == sum(full.memory.values()) and full.fits


def test_checkpointing_trades_memory_for_operations(full: Plan) -> None:
    for name in full.passes:
        assert full.checkpointed.kept[name] < 0.2 * full.plain.kept[name]
        assert full.checkpointed.forward_flops[name] == full.plain.forward_flops[name]
    assert full.checkpointed.backward_flops > full.plain.backward_flops
    assert full.checkpointed.peak < full.plain.peak


def test_gradients_wait_for_the_other_pass(full: Plan) -> None:
    """One backward walks both passes back: what the first leaves for a weight is whole until the second adds its part."""
    lm = next(group.elements for group in full.shape.groups if group.name == "lm")
    waiting = full.checkpointed.peak - sum(full.checkpointed.kept.values())
    assert waiting > 2 * 0.8 * lm


def test_an_attack_is_counted() -> None:
    plan = tiny("tiny_unigame")
    assert plan.step.attack_peak > 0 and plan.step.attack_flops > 0
    assert plan.memory["adversary"] > 0 and plan.memory["CLIP"] > 0 and plan.host["hard buffer"] > 0
    without = tiny("tiny_unigame", "objectives.unigame.attack_rows=0", "objectives.unigame.hard_rows=0")
    assert without.step.attack_peak == without.step.attack_flops == 0 and "CLIP" not in without.memory


def test_the_cheapest_change_comes_first(full: Plan) -> None:
    def over(bytes_: float) -> Plan:
        gpu = replace(full.cluster.gpu, memory=full.total - bytes_)
        return replace(full, cluster=replace(full.cluster, gpu=gpu))

    has = {"checkpointing": False, "lora": False, "offload": False}
    assert advice(full, **has) == "fits"
    assert advice(over(1), **has) == "type model.gradient_checkpointing=true"
    assert "halve the rows" in advice(over(1), **{**has, "checkpointing": True})
    one_row = replace(over(full.memory["gradients"] * 4 - 1), rows={name: {"row": 1} for name in full.passes})
    assert advice(one_row, **{**has, "checkpointing": True}) == "type model.train=lora"
    assert "max_length" in advice(over(full.total), **{**has, "checkpointing": True, "lora": True})


@pytest.mark.parametrize(
    "gpu, nodes, per_node, message",
    [
        ("h100-80", 1, 8, "Unknown GPU 'h100-80'. Did you mean 'h100-80g'.*mi300x"),
        ("h100-80g", -1, 8, "--nodes must be at least 1; got -1"),
        ("h100-80g", 1, 0, "--gpus-per-node must be at least 1; got 0"),
    ],
)
def test_clusters_that_do_not_exist(gpu: str, nodes: int, per_node: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster(gpu, nodes, per_node)


def test_recipes_that_cannot_be_planned() -> None:
    with pytest.raises(ConfigError, match=r"model.path=absent.*model.size=NAME; the family 'emu3' has tiny, 8b"):
        tiny("tiny_emu3_sft", "model.path=absent", "model.size=''")
    with pytest.raises(ConfigError, match="batch.global_rows=50 is not a multiple of 48"):
        tiny("tiny_emu3_sft", "batch={global_rows: 50}", ranks=3)


def test_no_adapter_of_a_34b_model_is_above_the_threshold() -> None:
    knobs = json.loads((REPOSITORY / "ds_configs/zero3_30b.json").read_text())["zero_optimization"]
    family = find("models", "openuni", CausalModel)
    widths = (5120, 27648, 5120 // 5)  # hidden, intermediate, keys and values: of a 30-billion language model
    assert family.sizes()[-1] == "38b"
    assert max(widths) * 16 < knobs["stage3_param_persistence_threshold"] < 5120 * 1024, "adapters, and no matrix"
    layer = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 27648
    assert 0.9 * layer < knobs["stage3_prefetch_bucket_size"] < 1.1 * layer


@pytest.mark.parametrize(
    "recipe, overrides",
    [
        ("tiny_sft", []),
        ("tiny_unimrg", ["model.train=full", "model.gradient_checkpointing=true"]),
    ],
)
def test_plans_equal_the_engine(tmp_path: Path, recipe: str, overrides: list[str]) -> None:
    """Two ranks, knobs that make the coordinator prefetch, release and keep: elements and gathered bytes are exact."""
    zero = json.loads((REPOSITORY / "ds_configs/zero3_cpu.json").read_text())["zero_optimization"]
    zero |= {"stage3_prefetch_bucket_size": 60000, "stage3_param_persistence_threshold": 1000}
    zero |= {"stage3_max_live_parameters": 900000, "stage3_max_reuse_distance": 150000}
    (tmp_path / "knobs.json").write_text(json.dumps({"zero_optimization": zero}))
    given = [*overrides, f"engine.ds_config={tmp_path / 'knobs.json'}", f"output={tmp_path / 'run'}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "launch/plan.py", f"launch/recipes/{recipe}.yaml", *given, "--gpus-per-node", "2", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = [line for line in done.stdout.splitlines() if "engine" in line and "planned" in line]
    assert len(checked) == 2 and all(line.endswith(": equal") for line in checked), done.stdout
    assert not any("planned 0," in line for line in checked)
