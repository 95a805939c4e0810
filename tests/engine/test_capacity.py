"""Runs that cannot fit are refused before anything is loaded."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megaunigame.engine import capacity
from megaunigame.engine.capacity import Memory, check_capacity, check_everywhere, host_bytes, memory_of
from megaunigame.engine.dry_run import check_peak, uncovered_bytes
from megaunigame.errors import CapacityError
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from tests.worlds import on_ranks

ONE = plan_from([RowRequest("u", UNDERSTAND, "s", 3)])
BOTH = plan_from([RowRequest("u", UNDERSTAND, "s", 3), RowRequest("g", GENERATE, "s", 2)])
ELEMENTS = 7 * 2**28 + 7


@pytest.fixture
def model():
    """7 x 2^28 elements and a bias, which take no memory."""
    with torch.device("meta"):
        return nn.Linear(2**28, 7)


def recipe(*, checkpointing=False, precision="bf16"):
    return SimpleNamespace(
        engine=SimpleNamespace(ds_config="ds_configs/some.json", precision=precision),
        model=SimpleNamespace(gradient_checkpointing=checkpointing),
    )


@pytest.mark.parametrize(("ranks", "missing"), [(2, 0), (2, 1), (3, 0)])
def test_zero2_needs_a_float32_copy_per_rank_on_the_host(model, ranks, missing):
    memory = Memory(2 * 4 * ELEMENTS - missing, device=1, ranks=ranks)
    cure = rf"some.json is ZeRO-2.*{ranks} ranks x 7.0 GiB.*engine.ds_config=ds_configs/zero3"
    with nullcontext() if (ranks, missing) == (2, 0) else pytest.raises(CapacityError, match=cure):
        check_capacity(model, recipe(), ONE, stage=2, world_size=4, memory=memory)


@pytest.mark.parametrize(("stage", "elements", "warned"), [(2, 11e9, True), (2, 9e9, False), (3, 11e9, False)])
def test_zero2_of_more_than_ten_billion_is_warned_of(stage, elements, warned, caplog, monkeypatch):
    monkeypatch.setattr(capacity, "memory_of", lambda world: Memory(2**50, 2**50, 1))
    with torch.device("meta"):
        large = nn.Linear(int(elements), 1, bias=False)
    on_ranks(2, lambda world: check_everywhere(large, recipe(), ONE, stage=stage, world=world))
    assert [f"{elements / 1e9:.1f} billion" in record.message for record in caplog.records] == [True] * warned


@pytest.mark.parametrize(("precision", "weight"), [("bf16", 2), ("fp32", 4)])
def test_two_passes_without_checkpointing_leave_the_model_whole(model, precision, weight):
    enough = weight * ELEMENTS + weight * ELEMENTS // 4
    check_capacity(model, recipe(precision=precision), BOTH, stage=3, world_size=4, memory=Memory(1, enough, 1))
    little = Memory(1, enough - 1, 1)
    with pytest.raises(CapacityError, match="micro-step of 2 passes leaves the model whole.*model.gradient_checkpointing=true"):
        check_capacity(model, recipe(precision=precision), BOTH, stage=3, world_size=4, memory=little)
    check_capacity(model, recipe(precision=precision), ONE, stage=3, world_size=4, memory=little)
    check_capacity(model, recipe(checkpointing=True, precision=precision), BOTH, stage=3, world_size=4, memory=little)


def test_what_one_rank_cannot_hold_stops_all(model, monkeypatch):
    monkeypatch.setattr(capacity, "memory_of", lambda world: Memory(8 * ELEMENTS, 1, 1 if world.rank else 9))

    def work(world):
        with pytest.raises(CapacityError, match="9 ranks"):
            check_everywhere(model, recipe(), ONE, stage=2, world=world)
        return True

    assert on_ranks(2, work) == [True, True]


def test_ranks_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(capacity, "host_bytes", lambda: 900)
    assert on_ranks(3, memory_of) == [Memory(900, 300, 3)] * 3


def test_a_container_has_less_than_its_machine(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    monkeypatch.setattr(capacity, "CONTAINER_LIMITS", (limit, tmp_path / "none"))
    assert host_bytes() == 2**20
    limit.write_text("max\n")
    assert host_bytes() > 2**20


@pytest.mark.parametrize(("reduce_dtype", "size"), [("fp32", 4), ("bf16", 2)])
def test_bytes_that_a_dry_run_does_not_touch(reduce_dtype, size):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(50, 30, bias=False), nn.Linear(30, 70, bias=False), nn.Linear(70, 900, bias=False))
    model.to(torch.bfloat16)
    model[2].requires_grad_(False)
    zero = {"stage": 3, "overlap_comm": False, "reduce_bucket_size": 400, "sub_group_size": 1000}
    config = {"communication_data_type": reduce_dtype, "zero_optimization": zero}
    alone = 2100 * (2 + size) + 2100 * size // 3
    assert uncovered_bytes(model, config, world_size=3) == alone + 400 * (2 + size) + 4 * 1000
    assert uncovered_bytes(model, config, world_size=12) == 2100 * (2 + size) + 175 * size + 400 * (2 + size) + 4 * 300
    zero["reduce_bucket_size"] = 10**9
    del zero["overlap_comm"]  # which deepspeed then decides by the stage
    assert uncovered_bytes(model, config, world_size=3) == alone + 2 * 3600 * (2 + size) + 4 * 1000
    zero["stage"] = 2
    assert uncovered_bytes(model, config, world_size=3) == alone + 3600 * (2 + size) + 4 * 1000
    zero["offload_optimizer"] = {"device": "cpu"}
    assert uncovered_bytes(model, config, world_size=3) == alone + 3600 * (2 + size)


def test_the_verdict_counts_what_the_dry_run_did_not_touch():
    check_peak(6 * 2**30, 2 * 2**30, 8 * 2**30)
    with pytest.raises(CapacityError, match="the dry run took 6.0 GiB.*2.0 GiB more, but only 8.0 GiB.*gradient_ch"):
        check_peak(6 * 2**30 + 1, 2 * 2**30, 8 * 2**30)
