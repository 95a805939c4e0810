"""Operations of rehearsed passes against those of their matrices."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.causal.model import CausalModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.planning.pretended_world import PretendedWorld
from megaunigame.planning.rehearsal import Rehearsal
from megaunigame.planning.workload import workload
from megaunigame.step.requests import GENERATE
from tests.planning.plans import tiny_recipe


def linear_flops(model: CausalModel, tokens: int) -> int:
    """Of the matrices of the decoder layers: 2 operations per element and token."""
    layers = model.language_model.layers
    return 2 * tokens * sum(p.numel() for p in layers.parameters() if p.dim() == 2)


@pytest.mark.parametrize("groups", ["[lm, head]", "[head]"])
def test_operations_of_a_pass_follow_from_its_matrices(groups):
    given = ["model.path=absent", "model.max_length=200", f"model.groups={groups}", "objectives.generation.caption_rows=3"]
    recipe = tiny_recipe("tiny_emu3_sft", *given, "objectives.generation.pixel_rows=0", "objectives.understanding.rows=1")
    with workload(recipe, 2) as work:
        rehearsal = Rehearsal(work, gradient_checkpointing=False, partitioned=False)
        model = rehearsal.model
        assert isinstance(model, CausalModel) and {p.dtype for p in model.parameters()} == {torch.bfloat16}
        del rehearsal.largest.inputs["understand"]
        inputs = rehearsal.largest.inputs[GENERATE]
        counted = rehearsal.rehearse(like_a_run=False)
    matrices = linear_flops(model, 3 * (inputs.tokens.shape[1] + model.processor.after_prompt))
    assert counted.forward[GENERATE].model > matrices
    if groups == "[head]":  # the decoder layers are not walked back
        assert counted.backward.model < matrices
    else:  # two products of the backward for each of the forward, and attention on top
        assert counted.backward.model > 2 * matrices


def test_every_collective_of_a_rank_alone_returns():
    """Players may use any of them in `rehearse`."""
    world, one = PretendedWorld(0, 3, 0, torch.device("cpu")), torch.ones(2)
    assert world.all_reduce_max(one.clone()).tolist() == [1, 1] and world.all_reduce_sum(one.clone()).tolist() == [3, 3]
    assert world.all_gather(one).shape == (3, 2) and world.gather_object("x") == world.all_gather_object("x") == ["x"] * 3
    assert [len(part) for part in world.all_to_all([one] * 3, [1, 0, 2])] == [1, 0, 2]
    collectives = {name for name, method in vars(Ranks).items() if callable(method) and not name.startswith("_")}
    assert collectives - set(vars(PretendedWorld)) == {"close"}, "a collective that would need a process group"
