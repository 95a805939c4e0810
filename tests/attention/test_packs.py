"""Packs of rows: where the rows are, what the positions of a row see, and when GPUs have one kernel for all rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from megaunigame.attention import packs
from megaunigame.attention.packs import Pack, has_kernel

LENGTHS = [3, 5, 0, 2]
ATTENTION = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 1, 0]], dtype=torch.bool)
WIDTH = 8


def qkv(heads: int = 4, key_heads: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, number, sum(LENGTHS), WIDTH, generator=draw) for number in (heads, key_heads, key_heads)]


def alone(parts: list[Tensor], masks: list[Tensor] | None = None, scaling: float | None = None) -> Tensor:
    """Attention (1, T, H, d) of each row by itself."""
    begin, rows = 0, []
    for number, length in enumerate(LENGTHS):
        if length:
            q, k, v = (part[:, :, begin : begin + length] for part in parts)
            k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
            seen = torch.ones(length, length, dtype=torch.bool).tril() if masks is None else masks[number]
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scaling)
            rows.append(attended.transpose(1, 2))
        begin += length
    return torch.cat(rows, dim=1)


def test_rows_come_back_where_they_were():
    pack, values = Pack(ATTENTION, LENGTHS), torch.randn(4, 5, 3)
    packed = pack.packed(values)
    assert packed.shape == (1, 10, 3) and torch.equal(packed[0], values[ATTENTION])
    assert torch.equal(pack.rows(packed), values * ATTENTION.unsqueeze(-1)), "zeros where nothing counts"
    assert [places.tolist() for places in pack.row_places()] == [[2, 3, 4], [0, 1, 2, 3, 4], [], [0, 3]]
    assert pack.ends.tolist() == [0, 3, 8, 8, 10] and pack.ends.dtype == torch.int32
    assert pack.flash_options["max_length_q"] == pack.flash_options["max_length_k"] == 5


@pytest.mark.parametrize("scaling", [None, 0.9])
def test_a_row_sees_itself_alone(scaling):
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    pack = Pack(ATTENTION, LENGTHS)
    found, _ = pack.attend(sdpa_attention_forward, module, *qkv(), 0.0, scaling)
    torch.testing.assert_close(found, alone(qkv(), scaling=scaling))
    pack.masks = [torch.randn(1, 1, length, length, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
    found, _ = pack.attend(sdpa_attention_forward, module, *qkv(), 0.0, scaling)
    torch.testing.assert_close(found, alone(qkv(), pack.masks, scaling))


@pytest.mark.parametrize("scaling", [None, 0.9])
def test_the_kernel_is_asked_for_what_rows_alone_give(monkeypatch, scaling):
    """A plain function in the place of the kernel: it attends from `ends`, backwards over `window_size`."""

    def kernel(q, k, v, ends, ends_of_keys, longest, longest_keys, *, scale, window_size, enable_gqa):
        assert ends.tolist() == ends_of_keys.tolist() and longest == longest_keys == max(LENGTHS)
        assert window_size == (-1, 0) and enable_gqa == (q.shape[1] != k.shape[1])
        return alone([part.transpose(0, 1).unsqueeze(0) for part in (q, k, v)], scaling=scale)[0]

    monkeypatch.setattr(packs, "has_kernel", lambda query, value, dropout: True)
    monkeypatch.setattr(packs, "varlen_attn", kernel)
    for heads in ((4, 2), (4, 4)):
        found, _ = Pack(ATTENTION, LENGTHS).attend(lambda *given: None, nn.Module(), *qkv(*heads), 0.0, scaling)
        torch.testing.assert_close(found, alone(qkv(*heads), scaling=scaling))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"width": 256}, True),
        ({"width": 264}, False),
        ({"width": 60}, False),
        ({"of_values": 128}, False),
        ({"dtype": torch.float32}, False),
        ({"is_cuda": False}, False),
        ({"dropout": 0.1}, False),
        ({"gpu": (7, 5)}, False),
        ({"gpu": (8, 0)}, True),
    ],
    ids=str,
)
def test_when_there_is_a_kernel(changed, expected, monkeypatch):
    given = {"dtype": torch.bfloat16, "width": 64, "is_cuda": True, "dropout": 0.0, "gpu": (9, 0)} | changed
    monkeypatch.setattr(packs, "capability", lambda device: given["gpu"])
    shape = (1, 4, 10, given["width"])
    query = SimpleNamespace(dtype=given["dtype"], is_cuda=given["is_cuda"], shape=shape, device=torch.device("meta"))
    value = SimpleNamespace(shape=(1, 2, 10, given.get("of_values", given["width"])))
    assert has_kernel(query, value, given["dropout"]) == expected
