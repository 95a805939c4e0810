"""Loading by slices: every rank's part equals what reading whole tensors gives, to the last bit, and nothing is read twice."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from megaunigame.engine import loading
from megaunigame.engine.loading import load_weights
from megaunigame.engine.partitioning import PartitionedParameters
from megaunigame.errors import ModelError, TransientModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.models.weights.renamed import RenamedWeights, StoredTensor
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.registry import find
from megaunigame.storage import pieces, retries
from tests.engine.test_partitioning import ds_config
from tests.models.shared import FAMILIES
from tests.multi_process.tiny_run import write_family
from tests.worlds import on_ranks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {"a": (5, 3), "b": (1,), "q": (2, 3), "k": (2, 3), "v": (2, 3), "flat": (3, 4), "row": (7,)}
"""Parameters of a small model, none of which three ranks divide evenly but q, k and v."""
STORED = {
    **{"a": StoredTensor("A"), "b": StoredTensor("B"), "flat": StoredTensor("F", flatten=True)},
    **{letter: StoredTensor("QKV", third) for third, letter in enumerate("qkv")},
    "row": StoredTensor("R", squeeze=True),
}


class Unopened:
    """Weights of a rank that must not look at them."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"only rank 0 may ask for {name}")


def write_small(folder: Path) -> RenamedWeights:
    """Two files in four number types."""
    draw = torch.Generator().manual_seed(5)
    first = {
        **{"A": torch.randn(5, 3, generator=draw), "B": torch.randn(1, generator=draw).half()},
        "QKV": torch.randn(6, 3, generator=draw).bfloat16(),
    }
    second = {"F": torch.randn(3, 4, 1, 1, generator=draw), "R": torch.randn(1, 7, generator=draw).double()}
    save_file(first, folder / "first.safetensors")
    save_file(second, folder / "second.safetensors")
    return RenamedWeights(TensorFiles([folder / "first.safetensors", folder / "second.safetensors"]), STORED)


def partition(model: nn.Module, ranks: int, dtype: torch.dtype, group: int | None = None) -> nn.Module:
    """The parameters of a model on `meta` as one rank of ZeRO-3 holds them, filled with NaN."""
    for parameter in model.parameters():
        held: Any = parameter
        size = -(-parameter.numel() // ranks)
        held.ds_shape, held.ds_numel, held.ds_tensor = (
            parameter.shape,
            parameter.numel(),
            torch.full((size,), torch.nan, dtype=dtype),
        )
        held.ds_secondary_tensor_group_size = group
        held.ds_secondary_tensor = None if group is None else torch.full((size * ranks // group,), torch.nan, dtype=dtype)
    return model


def small() -> nn.Module:
    return nn.ParameterDict({name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in NAMES.items()})


def whole(models: list[nn.Module], held: str = "ds_tensor") -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, flattened parameter, padding) from the slices of all ranks."""
    for name, parameter in models[0].named_parameters():
        joined = torch.cat([getattr(model.get_parameter(name), held) for model in models])
        yield name, joined[: parameter.numel()], joined[parameter.numel() :]


def loaded(make: Any, weights: Any, ranks: int, dtype: torch.dtype, **options: Any) -> tuple[list[nn.Module], list[str]]:
    """The model of every rank, and what was said."""
    said: list[str] = []
    models = [
        partition(make(), ranks, dtype, **options) for _ in range(ranks)
    ]  # not in threads: transformers is not made for it
    on_ranks(
        ranks, lambda world: load_weights(models[world.rank], weights if world.is_main else Unopened(), world, said.append)
    )
    return models, said


@pytest.mark.parametrize("name", FAMILIES)
def test_slices_of_every_family(name, tmp_path):
    family, folder = find("models", name, UnifiedModel), str(write_family(tmp_path / name, name))
    weights = family.weights(folder)
    processor = family.open_processor(folder, max_length=96)

    def build() -> nn.Module:
        with torch.device("meta"):
            return family.build(folder, processor, attention="sdpa", gradient_checkpointing=False)

    for precision, ranks in (("fp32", 3), ("bf16", 2)):
        models, _ = loaded(build, weights, ranks, DTYPES[precision])
        for key, ours, padding in whole(models):
            theirs = weights.read(key).to(DTYPES[precision])
            assert torch.equal(ours, theirs.flatten()), (precision, key)
            assert not padding.any()


@pytest.mark.parametrize("buffer", [8, 2**24])
@pytest.mark.parametrize("precision", DTYPES)
def test_renamed_fused_and_converted_tensors(precision, buffer, tmp_path, monkeypatch):
    """Four ranks leave some without any element of a parameter; a buffer of 8 bytes converts one or two numbers at a time."""
    monkeypatch.setattr(pieces, "BUFFER", buffer)
    weights, read = write_small(tmp_path), []
    monkeypatch.setattr(os, "preadv", lambda *call, true=os.preadv: read.append(true(*call)) or read[-1])
    monkeypatch.setattr(loading, "EVERY_SECONDS", -1.0)
    for ranks in (1, 2, 3, 4):
        read.clear()
        models, said = loaded(small, weights, ranks, DTYPES[precision])
        for key, ours, padding in whole(models):
            assert torch.equal(ours, weights.read(key).to(DTYPES[precision]).flatten()), (ranks, key)
            assert not padding.any()
        assert sum(read) == 4 * 15 + 2 * 1 + 2 * 18 + 4 * 12 + 8 * 7, "every byte once, and no other"
        assert "weights: rank 0 has read" in said[0] and said[-1].startswith("weights: every rank read")
        assert "rank 0 alone" not in said[-1]


def test_both_copies_of_two_groups(tmp_path):
    """zero_hpz_partition_size 2 of 4 ranks."""
    weights = write_small(tmp_path)
    models, _ = loaded(small, weights, 4, torch.float32, group=2)
    for held, ranks in (("ds_tensor", models), ("ds_secondary_tensor", models[:2]), ("ds_secondary_tensor", models[2:])):
        for key, ours, padding in whole(ranks, held):
            assert torch.equal(ours, weights.read(key).float().flatten()), (held, key)
            assert not padding.any()


def test_a_parameter_without_weights_is_named_on_all_ranks(tmp_path):
    weights = write_small(tmp_path)
    del weights.stored["row"]
    with pytest.raises(ModelError, match="lack 1 parameters of the model: row"):
        loaded(small, weights, 3, torch.float32)


@pytest.mark.parametrize(
    ("damage", "said", "kind"),
    [
        ("cut", "Rank 0 .*ends before its byte", ModelError),
        ("gone", "No such file.*every", TransientModelError),
    ],
)
def test_a_file_that_cannot_be_read(damage, said, kind, tmp_path, monkeypatch):
    """After rank 0 has looked where tensors lie. A file that is cut does not pass, also where some ranks do not see it."""
    weights, file = write_small(tmp_path), tmp_path / "second.safetensors"
    monkeypatch.setattr(
        loading, "_compare", lambda prints: file.unlink() if damage == "gone" else os.truncate(file, file.stat().st_size - 100)
    )
    with pytest.raises(ModelError, match=said) as raised:
        loaded(small, weights, 3, torch.float32)
    assert type(raised.value) is kind


def test_one_refusal_that_passes_does_not_hide_one_that_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "WAITS", ())
    numbers = iter([errno.ESTALE, *[errno.EACCES] * 9])

    def refuse(*_: object) -> None:
        raise OSError(number := next(numbers), os.strerror(number))

    monkeypatch.setattr(loading.PieceReader, "_read", refuse)
    with pytest.raises(ModelError) as raised:
        loaded(small, write_small(tmp_path), 2, torch.float32)
    assert type(raised.value) is ModelError


def test_a_look_at_a_file_is_tried_again(tmp_path, monkeypatch):
    """By rank 0, where it looks for tensors, and on every machine, before it reads them."""
    monkeypatch.setattr(retries, "WAITS", (0.0,))
    asked, look = [], loading.fingerprint

    def stale(file: str) -> str:
        asked.append(file)
        if len(asked) in (1, 5):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return look(file)

    monkeypatch.setattr(loading, "fingerprint", stale)
    loaded(small, write_small(tmp_path), 1, torch.float32)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("first", "second")]
    assert asked == [files[0], *files, files[0], files[1], files[1]]


@pytest.mark.parametrize("where", ["looking", "reading"])
@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, TransientModelError), (errno.EACCES, ModelError)])
def test_a_file_system_that_does_not_answer(number, kind, where, tmp_path, monkeypatch):
    """Rank 0 looks where tensors lie, and the others wait for what it says; then every rank reads."""
    monkeypatch.setattr(retries, "WAITS", ())

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    weights = write_small(tmp_path)
    if where == "looking":
        monkeypatch.setattr(loading, "fingerprint", refuse)
    else:
        monkeypatch.setattr(loading.PieceReader, "_read", refuse)
    with pytest.raises(ModelError, match="Rank 0 cannot read the weights: .*the same command again") as raised:
        loaded(small, weights, 2, torch.float32)
    assert type(raised.value) is kind


def test_a_copy_on_another_machine_that_is_another_file(tmp_path, monkeypatch):
    weights = write_small(tmp_path)
    found = iter(["of rank 0"] * 2 + ["another"] * 9)
    monkeypatch.setattr(loading, "fingerprint", lambda file: next(found))
    with pytest.raises(ModelError, match=r"Rank 0 .*first.safetensors is not the file that rank 0 has"):
        loaded(small, weights, 2, torch.float32)


def test_each_machine_compares_its_own_files(tmp_path, monkeypatch):
    """Four ranks on two machines: the first rank of each, which is not rank 0 on the second."""
    weights, compared = write_small(tmp_path), []
    monkeypatch.setattr(loading, "_compare", compared.append)

    def work(world):
        object.__setattr__(world, "local_rank", world.rank % 2)
        load_weights(models[world.rank], weights if world.is_main else Unopened(), world)

    models = [partition(small(), 4, torch.float32) for _ in range(4)]
    on_ranks(4, work)
    assert len(compared) == 2


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 7)


def test_what_has_no_slices_is_sent_by_module(tmp_path, world):
    """A PyTorch file, under the engine's own partitions. Construction broadcasts nothing; a later parameter is broadcast."""
    plain = Layers()
    torch.save(plain.state_dict(), tmp_path / "pytorch_model.bin")
    files, said = TensorFiles.of_folder(tmp_path), []
    broadcast = mock.patch.object(torch.distributed, "broadcast", side_effect=AssertionError("nothing to broadcast"))
    with broadcast, PartitionedParameters(ds_config("bf16")):
        model = Layers()
    weights = RenamedWeights(files, {key: StoredTensor(key) for key in files.index})
    with mock.patch.object(deepspeed.zero, "GatheredParameters", side_effect=deepspeed.zero.GatheredParameters) as gathering:
        load_weights(model, weights, world, said.append)
    assert [len(call.args[0]) for call in gathering.call_args_list] == [2, 2]
    assert "; 4 tensors (124 B) by rank 0 alone, which sent them" in said[-1]
    for name, parameter in model.named_parameters():
        held: Any = parameter
        assert torch.equal(held.ds_tensor, plain.get_parameter(name).detach().bfloat16().flatten())
    adapter = nn.Parameter(torch.ones(3))
    with mock.patch.object(torch.distributed, "broadcast") as sent:
        held.convert_to_zero_parameters([adapter])
    assert sent.called, "adapters have values, which must be those of rank 0 on all ranks"
