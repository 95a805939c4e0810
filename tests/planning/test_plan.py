"""Plans: what is counted on the meta device, and what follows from it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import megaunigame.planning.plan as planning
from megaunigame.errors import ConfigError, ModelError, UserError
from megaunigame.models.causal.model import CausalModel
from megaunigame.planning.machines import ACHIEVED_FLOPS, cluster
from megaunigame.planning.operations import Operations
from megaunigame.planning.plan import Plan
from megaunigame.planning.text import describe
from megaunigame.registry import find
from tests.multi_process.launcher import REPOSITORY, run_script
from tests.planning.plans import tiny


def trained(plan: Plan) -> int:
    return sum(elements for elements, is_trained in plan.shape.parameters if is_trained)


def test_states_of_a_rank_are_slices(full):
    elements = sum(elements for elements, _ in full.shape.parameters)
    assert full.elements_per_rank == elements and full.memory["weights"] == 2 * elements, "ZeRO-2 keeps weights whole"
    sliced = full.memory["gradients"] // 4
    assert trained(full) / 3 <= sliced < trained(full) / 3 + len(full.shape.parameters)
    assert full.memory["optimizer"] == 3 * full.memory["gradients"]
    assert full.total == sum(full.memory.values()) and full.fits


def test_traffic_of_zero_2_is_gradients_and_updated_weights(full, game):
    # A weight of both passes has two backwards in a micro-step. The text head and the parts that draw have one.
    drawing = sum(group.trained for group in full.shape.groups if group.name.startswith("generation"))
    head = max(elements for elements, _ in full.shape.parameters if elements % 192 == 0)  # as large as the embedding
    assert (full.reduced, full.updated) == (4 * (2 * trained(full) - drawing - head), 2 * trained(full))
    assert full.traffic == full.reduced + full.updated
    assert full.network_seconds == pytest.approx(full.traffic * 2 / 3 / full.cluster.collective_bandwidth)
    attacked = replace(game, aside_gathered=7 * 10**9)
    more = 7e9 * 1 / 2 / game.cluster.collective_bandwidth
    assert attacked.network_seconds - game.network_seconds == pytest.approx(more, rel=1e-6)


def test_traffic_of_a_step_is_that_of_its_micro_steps(game, monkeypatch):
    """ZeRO-3 gathers the weights again in each. Without a process group none are gathered: numbers stand in for them."""

    def gathering(*given):
        rehearsals, shape, late = rehearsed(*given)
        numbers = {"gathered": 700, "aside_gathered": 60 * shape.rehearsed_every}
        return {kind: replace(step, **numbers) for kind, step in rehearsals.items()}, shape, late

    rehearsed = planning._rehearsals
    monkeypatch.setattr(planning, "_rehearsals", gathering)
    thrice = tiny("tiny_unigame", "batch.accumulation=3")
    assert (thrice.gathered, thrice.aside_gathered) == (2100, 180)
    assert thrice.reduced == 3 * game.reduced > 0 and thrice.updated == game.updated > 0


def test_checkpointing_trades_memory_for_operations(full):
    for name in full.passes:
        assert full.checkpointed.kept[name] < 0.2 * full.plain.kept[name]
        assert full.checkpointed.forward[name] == full.plain.forward[name]
    assert full.checkpointed.backward.model == full.plain.backward.model
    assert full.checkpointed.backward.again > 0.5 * sum(o.model for o in full.plain.forward.values())
    assert full.plain.backward.again == 0
    assert full.checkpointed.peak < full.plain.peak


def test_nothing_waits_for_the_other_pass(full):
    """Each pass has its own backward: neither graphs of two passes are in memory at once, nor gradients of the whole model."""
    assert full.plain.peak < sum(full.plain.kept.values())
    assert full.checkpointed.peak < sum(full.plain.kept.values()) / 4


def test_an_attack_is_counted(game):
    assert game.step.aside_peak > 0 and game.memory["adversary"] > 0 and game.memory["CLIP"] > 0
    assert game.host["hard buffer"] > 0
    trained = sum(elements for elements, is_trained in game.shape.parameters if is_trained)
    assert game.host["a checkpoint that is being written"] - game.host["hard buffer"] == pytest.approx(
        12 * trained / game.cluster.ranks, rel=0.01
    )
    micro = game.step.learner.model + game.step.aside.model
    assert game.operations.model == micro * game.accumulation and game.step.aside.model > 10**9
    assert game.step.aside.again > 0, "frozen tokenizers compute again, which is not the model's"
    assert game.mfu is not None
    assert game.mfu[1] == pytest.approx(game.operations.model / game.seconds[0] / game.cluster.gpu.peak.bf16)


def test_a_step_without_a_game_has_none_of_it():
    without = tiny("tiny_unigame", "objectives.unigame.attack_rows=0", "objectives.unigame.hard_rows=0", ranks=1)
    assert without.step.aside_peak == without.step.aside.total == 0 and "CLIP" not in without.memory
    assert without.reduced == without.updated == 0 and without.network_seconds == 0, "one rank has nobody to talk to"


def test_attacks_that_come_seldom_cost_less(game):
    third = replace(game, shape=replace(game.shape, rehearsed_every=3))
    assert third.operations.model == game.step.learner.model + game.step.aside.model // 3
    assert "every 3 steps" in describe(third, [])


def test_attacked_rows_that_join_the_learners_lie_in_its_graph(game):
    joined = tiny("tiny_unigame", "objectives.unigame.mode=simultaneous", "objectives.unigame.every=2")
    assert joined.shape.rehearsed_every == 2
    rows = {name: sum(terms.values()) for name, terms in joined.rows.items()}["understand"]
    assert rows == 8 + 2 + 8
    ratio = joined.step.forward["understand"].model / game.step.forward["understand"].model
    assert ratio == pytest.approx(18 / 10, rel=0.01)
    assert joined.step.aside_peak < game.step.aside_peak, "an attack alone also asks about its pictures"
    assert joined.step.backward.in_fp32 > 0, "the learner's backward goes on into the decoder"
    assert game.step.backward.in_fp32 == 0


def test_operations_in_float32_take_the_time_of_float32(game):
    operations = Operations(model=700, again=50, in_fp32=150)
    assert operations.total == 750 and operations.seconds(bf16=60, fp32=3) == 600 / 60 + 150 / 3
    peak = game.cluster.gpu.peak
    slow = game.operations.in_fp32 / (ACHIEVED_FLOPS * peak.fp32)
    fast = (game.operations.total - game.operations.in_fp32) / (ACHIEVED_FLOPS * peak.bf16)
    assert slow < game.compute_seconds == pytest.approx(slow + fast)
    assert replace(game, precision="fp32").mfu is None


@pytest.mark.parametrize(
    "gpu, nodes, per_node, message",
    [
        ("h100-80", 1, 8, "Unknown GPU 'h100-80'. Did you mean 'h100-80g'.*mi300x"),
        ("h100-80g", -1, 8, "--nodes must be at least 1; got -1"),
        ("h100-80g", 1, 0, "--gpus-per-node must be at least 1; got 0"),
    ],
)
def test_clusters_that_do_not_exist(gpu, nodes, per_node, message):
    with pytest.raises(ConfigError, match=message):
        cluster(gpu, nodes, per_node)


def test_no_adapter_of_a_34b_model_is_above_the_threshold():
    knobs = json.loads((REPOSITORY / "ds_configs/zero3_30b.json").read_text())["zero_optimization"]
    family = find("models", "openuni", CausalModel)
    widths = (5120, 27648, 5120 // 5)  # hidden, intermediate, keys and values: of a 30-billion language model
    assert list(family.sizes)[-1] == "38b"
    assert max(widths) * 16 < knobs["stage3_param_persistence_threshold"] < 5120 * 1024, "adapters, and no matrix"
    layer = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 27648
    assert 0.9 * layer < knobs["stage3_prefetch_bucket_size"] < 1.1 * layer


def test_help_names_the_gpus():
    shown = run_script("launch/plan.py", "--help").stdout
    assert "a100-80g" in shown and "mi300x" in shown


def test_a_file_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    done = run_script("launch/plan.py", "launch/recipes/tiny_sft.yaml", "--json", str(tmp_path / "file" / "plan.json"))
    assert done.returncode == 2 and "--json" in done.stderr and "rehearsing" not in done.stderr


@pytest.mark.ranks
def test_a_plan_of_the_game_equals_the_engine(tmp_path):
    """Two ranks, knobs that make the coordinator prefetch, release and keep: elements and gathered bytes are exact. Recipes
    without a game: tests/multi_process/plans.py, for every family."""
    zero = json.loads((REPOSITORY / "ds_configs/zero3_cpu.json").read_text())["zero_optimization"]
    zero |= {"stage3_prefetch_bucket_size": 60000, "stage3_param_persistence_threshold": 1000}
    zero |= {"stage3_max_live_parameters": 900000, "stage3_max_reuse_distance": 150000}
    (tmp_path / "knobs.json").write_text(json.dumps({"zero_optimization": zero}))
    written = tmp_path / "made" / "plan.json"
    given = [f"engine.ds_config={tmp_path / 'knobs.json'}", f"output={tmp_path / 'run'}", "--json", str(written)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "launch/plan.py", "launch/recipes/tiny_unigame.yaml", *given, "--gpus-per-node", "2", "--check"]
    done = run_script(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = [line for line in done.stdout.splitlines() if "engine" in line and "planned" in line]
    assert len(checked) == 2 and all(line.endswith(": equal") for line in checked), done.stdout
    assert not any("planned 0," in line for line in checked)
    plan = json.loads(written.read_text())
    assert plan["aside_gathered"] > plan["gathered"] > 0


def test_ranks_that_share_a_row_hold_parts_of_its_activations():
    """And make parts of the operations of the layers and of the head; what is before them, each makes alone."""
    long = ["model.path=absent", "model.max_length=1024", "model.pack_tokens=1024", "model.gradient_checkpointing=true"]
    alone = tiny("tiny_emu3_sft", *long, ranks=4)
    shared = tiny("tiny_emu3_sft", *long, "engine.sequence_ranks=2", ranks=4)
    assert (alone.sequence_ranks, shared.sequence_ranks) == (1, 2) and shared.accumulation == alone.accumulation
    assert shared.memory["weights"] == alone.memory["weights"]
    for name in alone.passes:
        assert shared.plain.kept[name] < 0.55 * alone.plain.kept[name], (name, shared.plain.kept, alone.plain.kept)
        whole, part = alone.plain.forward[name], shared.plain.forward[name]
        assert part.in_fp32 == whole.in_fp32, "frozen tokenizers, which each rank runs for all rows"
        assert part.model - part.in_fp32 < 0.55 * (whole.model - whole.in_fp32)
    assert "rows a micro-step and 2 ranks that share them" in describe(shared, [])
    assert "left out: traffic between the ranks that share a row" in describe(shared, [])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.sequence_ranks=3"], "engine.sequence_ranks=3 does not divide the 4 ranks of this launch. .*: 1, 2, 4"),
        (
            ["engine.sequence_ranks=2", "model.pack_tokens=0"],
            "engine.sequence_ranks=2 divides packed rows. Type model.pack_tokens=",
        ),
        (
            ["engine.sequence_ranks=2", "evaluation.gather=tensor_parallel"],
            "evaluation.gather=tensor_parallel divides .*engine.sequence_ranks=2 .*Type evaluation.gather=auto, or eng",
        ),
        (["engine.sequence_ranks=4"], r"engine.sequence_ranks=4 does not divide the 6 attention heads .*: 1, 2, 3, 6\."),
    ],
)
def test_ranks_that_cannot_share_a_row_are_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        tiny("tiny_emu3_sft", "model.path=absent", "model.pack_tokens=4096", *overrides, ranks=4)


def test_a_family_that_does_not_divide_rows_says_so():
    with pytest.raises(ModelError, match="Bagel does not divide a row among ranks. Type engine.sequence_ranks=1"):
        find("models", "bagel", CausalModel).check_sequence_ranks("anywhere", 2)
