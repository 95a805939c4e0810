"""Random weights: what a rank draws, whole or partitioned, and nothing else of the model touched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from megaunigame.config import ModelConfig
from megaunigame.engine.model_folder import model_folder
from megaunigame.engine.random_weights import STD, fill_randomly
from megaunigame.errors import ModelError
from megaunigame.models.emu3 import Emu3
from megaunigame.models.janus import Janus
from megaunigame.parallel.ranks import Ranks
from tests.refusals import refused


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(90, 70)
        self.norm = nn.LayerNorm(90)
        self.table = nn.Embedding(70, 90)
        self.scale = nn.Parameter(torch.full((90,), 7.0))
        self.register_buffer("frequencies", torch.arange(5.0))


def rank(number: int, size: int = 4) -> Ranks:
    return Ranks(number, size, 0, torch.device("cpu"))


def filled(seed: int = 3, world: Ranks | None = None) -> dict[str, torch.Tensor]:
    model = Small()
    fill_randomly(model, seed, world or rank(0))
    return model.state_dict()


def partitioned(shapes: dict[str, tuple[int, ...]], numel: int, groups: int | None = None) -> nn.Module:
    """A model as one rank of ZeRO-3 holds it: empty parameters, a slice of `numel` elements each."""
    model = nn.Module()
    for name, shape in shapes.items():
        parameter: Any = nn.Parameter(torch.empty(0), requires_grad=False)
        parameter.ds_shape, parameter.ds_tensor = torch.Size(shape), torch.full((numel,), float("nan"), dtype=torch.bfloat16)
        parameter.ds_secondary_tensor = None if groups is None else torch.full((2 * numel,), float("nan"), dtype=torch.bfloat16)
        parameter.ds_secondary_tensor_group_size = groups
        model.register_parameter(name, parameter)
    return model


def test_matrices_are_normal_vectors_one_and_biases_zero():
    state = filled()
    for name in ("linear.weight", "table.weight"):
        assert abs(state[name].std().item() / STD - 1) < 0.03 and abs(state[name].mean().item()) < 0.1 * STD
    assert (state["norm.weight"] == 1).all() and (state["scale"] == 1).all()
    assert (state["norm.bias"] == 0).all() and (state["linear.bias"] == 0).all()
    assert torch.equal(state["frequencies"], torch.arange(5.0)), "buffers are not weights"


def test_values_depend_on_seed_and_name():
    state = filled()
    assert torch.equal(state["linear.weight"], filled()["linear.weight"])
    assert not torch.equal(state["linear.weight"], filled(seed=4)["linear.weight"])
    assert not torch.equal(state["linear.weight"], state["table.weight"])


def test_what_is_not_partitioned_is_equal_on_all_ranks():
    ours, theirs = filled(world=rank(0)), filled(world=rank(3))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_callers_random_state_stays():
    model = Small()
    before = torch.get_rng_state()
    fill_randomly(model, 3, rank(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_rank_fills_its_own_slice():
    shapes = {"matrix": (50, 40), "bias": (500,), "weight": (500,)}
    slices = []
    for number in range(4):
        model = partitioned(shapes, 500)
        fill_randomly(model, 3, rank(number))
        assert all(parameter.numel() == 0 for parameter in model.parameters()), "nothing is ever whole"
        tensors: Any = dict(model.named_parameters())
        assert (tensors["bias"].ds_tensor == 0).all() and (tensors["weight"].ds_tensor == 1).all()
        slices.append(tensors["matrix"].ds_tensor)
    assert all(abs(part.float().std().item() / STD - 1) < 0.1 for part in slices)
    assert not any(torch.equal(slices[0], part) for part in slices[1:])


def test_the_copy_of_a_group_holds_the_slices_of_its_ranks():
    """zero_hpz_partition_size 2 of 4 ranks: each rank of a group has the slices of two ranks of the whole."""
    primary, secondary = [], []
    for number in range(4):
        model = partitioned({"matrix": (50, 40)}, 500, groups=2)
        fill_randomly(model, 3, rank(number))
        tensors: Any = dict(model.named_parameters())
        primary.append(tensors["matrix"].ds_tensor)
        secondary.append(tensors["matrix"].ds_secondary_tensor)
    whole = torch.cat(primary)
    assert torch.equal(torch.cat(secondary[:2]), whole) and torch.equal(torch.cat(secondary[2:]), whole)


def random(**settings: Any) -> ModelConfig:
    return ModelConfig(**{"path": "", "weights": "random", **settings})


def test_a_size_is_written_and_taken_away_again():
    with model_folder(Janus, random(size="tiny")) as first, model_folder(Janus, random(size="tiny")) as second:
        assert first != second and Janus.language_layers(first) == 6
    with pytest.raises(ModelError):
        Janus.language_layers(first)


def test_a_size_goes_before_a_folder_and_only_for_random_weights(tmp_path):
    with model_folder(Emu3, random(family="emu3", size="tiny", path=str(tmp_path))) as folder:
        assert folder != str(tmp_path)
    with model_folder(Emu3, random(family="emu3", path=str(tmp_path))) as folder:
        assert folder == str(tmp_path)
    with model_folder(Emu3, random(family="emu3", size="tiny", path=str(tmp_path), weights="pretrained")) as folder:
        assert folder == str(tmp_path)


@pytest.mark.parametrize(
    "config, parts",
    [
        (random(size="7bb"), ["model.size", "Did you mean '7b'", "model.family=janus"]),
        (random(path=".", size="7bb", weights="pretrained"), ["Unknown value of model.size", "'7bb'", "Legal: tiny, 1b, 7b"]),
        (random(path="nowhere"), ["model.path=nowhere", "model.size=NAME (tiny, 1b, 7b)"]),
        (random(path="nowhere", weights="pretrained", size="7b"), ["No folder at model.path=nowhere", "model.weights=random."]),
        (random(path="nowhere", weights="pretrained"), ["No folder", "model.weights=random model.size=NAME (tiny, 1b, 7b)."]),
    ],
)
def test_a_shape_that_does_not_exist(config, parts):
    with refused(*parts), model_folder(Janus, config):
        pass


def test_a_size_of_a_family_without_sizes():
    with refused("model.size=7b", "model.family=plain has no named sizes", "Type model.size=''"):
        with model_folder(SimpleNamespace(sizes={}), random(family="plain", size="7b", path=".", weights="pretrained")):
            pass


def test_frozen_tokenizers_are_filled_too():
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    codes = []
    with model_folder(Janus, random(size="tiny")) as folder:
        processor = Janus.open_processor(folder, max_length=96)
        for number in (1, 2):
            model = Janus.build(folder, processor, attention="eager", gradient_checkpointing=False)
            tokenizer = model.build_frozen()
            fill_randomly(tokenizer, 3, rank(number))
            model.hold_frozen(tokenizer)
            codes.append(model.encode_target(pixels))
            assert not any(p.requires_grad for p in model.image_tokenizer.parameters())
    assert codes[0].shape == (2, 64) and torch.equal(*codes)
