"""Ranks that share a sequence, as threads, against one process that reads it alone: what they read, gradients, taps, memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from megaunigame.attention import plain, sharing, taps
from megaunigame.attention.packs import Pack
from megaunigame.attention.queries import answers
from megaunigame.attention.sharing import Sharing, key_copies
from megaunigame.attention.taps import Tap
from megaunigame.errors import ModelError
from megaunigame.step.inputs import IGNORE, Taps
from megaunigame.step.labels import label_positions
from tests.worlds import ThreadWorld, on_ranks

WIDTH, LENGTH = 24, 13
"""13 positions: no number of ranks divides them."""
CASES = {
    "one head of keys for four": (4, 1, 2),
    "two heads of keys for four": (4, 2, 2),
    "as many": (4, 4, 2),
    "fewer heads of keys than ranks": (6, 2, 3),
    "heads of keys that the ranks do not divide": (12, 4, 6),
}


def language_model(heads: int, key_heads: int, *, checkpointing: bool = False) -> LlamaModel:
    torch.manual_seed(heads + 10 * key_heads)
    config = LlamaConfig(
        vocab_size=16, hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=2, num_attention_heads=heads, head_dim=8,
        num_key_value_heads=key_heads, use_cache=False,
    )  # fmt: skip
    model = LlamaModel(config)
    plain.choose_attention(model, "sdpa")
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.dim() > 1 else 1  # attention far from uniform
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def embeds(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def tap() -> Tap:
    """Queries 7, 8 and 11; keys 2 to 5."""
    queries, keys = torch.zeros(2, 1, LENGTH, dtype=torch.bool)
    queries[0, [7, 8, 11]], keys[0, 2:6] = True, True
    chosen = answers(label_positions(torch.where(queries, 1, IGNORE)), 0, LENGTH)
    return Tap(Taps((0, 1)), chosen, keys, torch.eye(1, LENGTH, dtype=torch.bool))


def loss_of(hidden: Tensor, tapped: Tap) -> Tensor:
    weights = torch.linspace(-1, 2, hidden.numel()).view_as(hidden)
    return (weights * hidden.float()).sum() + 30 * tapped.shares().keys.square().sum()


def alone(model: LlamaModel, given: Tensor) -> tuple[Tensor, Tap]:
    measured = tap()
    return model(inputs_embeds=given, tap=measured).last_hidden_state, measured


def together(model: LlamaModel, given: Tensor, world: ThreadWorld) -> tuple[Tensor, Tap]:
    measured, shared = tap(), Sharing(world, LENGTH)
    measured.ranks = world
    positions = shared.own_positions(torch.arange(LENGTH).unsqueeze(0))
    read = model(inputs_embeds=shared.own(given), position_ids=positions, tap=measured, sharing=shared)
    return shared.whole(read.last_hidden_state), measured


def gradients(model: LlamaModel, given: Tensor) -> list[Tensor]:
    assert given.grad is not None
    return [given.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", CASES.values(), ids=CASES)
def test_what_ranks_read_together_is_what_one_reads(heads, dtype):
    heads, key_heads, ranks = heads
    plain_model = language_model(heads, key_heads).to(dtype)
    taps.install(plain_model)
    given = embeds(dtype)
    hidden, measured = alone(plain_model, given)
    loss_of(hidden, measured).backward()
    wanted = gradients(plain_model, given)

    def work(world: ThreadWorld) -> tuple[Tensor, Tensor, list[Tensor]]:
        model, own = copy.deepcopy(plain_model), embeds(dtype)
        for parameter in model.parameters():
            parameter.grad = None
        sharing.install(model)
        read, tapped = together(model, own, world)
        loss_of(read, tapped).backward()
        assert {layer.self_attn.num_key_value_groups for layer in model.layers} == {heads // key_heads}, "as before"
        return read.detach(), tapped.shares().keys.detach(), gradients(model, own)

    legal = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    found = on_ranks(ranks, work)
    for read, shares, (of_embeds, *_) in found:
        torch.testing.assert_close(read, hidden.detach(), **legal)
        torch.testing.assert_close(shares, measured.shares().keys.detach(), **legal)
        assert relative(of_embeds, wanted[0]) < legal["rtol"]  # every rank has all of it
    for parts, whole in zip(zip(*(of_rank[1:] for _, _, of_rank in found), strict=True), wanted[1:], strict=True):
        # Every rank has the whole loss, so the sum over ranks is that of as many losses.
        assert relative(sum(parts) / ranks, whole) < legal["rtol"]


@pytest.mark.parametrize("heads", CASES.values(), ids=CASES)
def test_masked_rows_that_ranks_read_together_are_those_one_reads(heads):
    """With a mask, attention functions repeat the heads of keys themselves: as often as is left to do on each rank."""
    heads, key_heads, ranks = heads
    plain_model = language_model(heads, key_heads).eval()
    backward = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu()  # unlike what it is without a mask

    def pack() -> Pack:
        made = Pack(torch.ones(1, LENGTH, dtype=torch.bool), [LENGTH])
        made.masks = [torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~backward, -1e9)]
        return made

    def work(world: ThreadWorld) -> Tensor:
        model, shared = copy.deepcopy(plain_model), Sharing(world, LENGTH)
        sharing.install(model)
        positions = shared.own_positions(torch.arange(LENGTH).unsqueeze(0))
        read = model(inputs_embeds=shared.own(embeds()), position_ids=positions, sharing=shared, pack=pack())
        return shared.whole(read.last_hidden_state)

    with torch.no_grad():
        wanted = plain_model(inputs_embeds=embeds(), pack=pack()).last_hidden_state
    for read in on_ranks(ranks, work):
        torch.testing.assert_close(read, wanted, rtol=1e-4, atol=1e-4)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).float().norm() / wanted.float().norm()).item()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_rank_keeps_its_part_of_the_activations(checkpointing):
    def kept(ranks: int) -> int:
        """Bytes that autograd saves inside the language model, weights apart."""

        def work(world: ThreadWorld) -> int:
            model = language_model(4, 4, checkpointing=checkpointing)
            sharing.install(model)
            weights, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

            def note(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    saved[storage.data_ptr()] = storage.nbytes()
                return tensor

            shared = Sharing(world, 512)
            own = shared.own(torch.randn(1, 512, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_())
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                read = model(inputs_embeds=own, sharing=shared).last_hidden_state
            assert read.shape == (1, 512 // ranks, WIDTH)
            return sum(saved.values())

        return max(on_ranks(ranks, work))

    whole = kept(1)
    assert kept(2) < 0.55 * whole and kept(4) < 0.3 * whole


def test_heads_of_keys_are_repeated_no_more_than_needed():
    """(heads, heads of keys, ranks) -> copies."""
    wanted = {(4, 1, 2): 2, (4, 2, 2): 1, (4, 4, 2): 1, (6, 2, 3): 3, (12, 4, 6): 3, (64, 8, 8): 1, (64, 8, 16): 2}
    assert {case: key_copies(*case) for case in wanted} == wanted


def test_without_a_sharing_nothing_changes():
    model = language_model(4, 2)
    before = model(inputs_embeds=embeds()).last_hidden_state
    sharing.install(model)
    sharing.install(model)
    assert torch.equal(model(inputs_embeds=embeds()).last_hidden_state, before)
    assert taps.untapped(model.config._attn_implementation) == plain.PLAIN


def test_an_attention_outside_the_table_is_refused():
    model = language_model(4, 2)
    model.config._attn_implementation = "own"
    with pytest.raises(ModelError, match="does not go through transformers' table"):
        sharing.install(model)
