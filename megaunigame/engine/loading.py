"""Weights of a checkpoint into the model of the engine: every rank reads what it keeps.

Where weights are partitioned, a rank holds elements [r, r + 1) x `slice` of every flattened parameter. They lie one after
the other in a safetensors file, a third of a fused tensor included, so they are read straight into the partition: no
collective moves a weight, and no rank needs memory next to its partition. Rank 0 alone looks where they lie, and tells the
others. What no file has as it is (PyTorch files; adapters that are merged) rank 0 reads one module at a time, and sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import deepspeed
from torch import Tensor, nn

from megaunigame.engine.memory_plan import short_bytes
from megaunigame.engine.parameters import LORA, element_count, group_label
from megaunigame.errors import ModelError, TransientModelError, UserError
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.models.weights.loading import SHOWN, check_names, check_shapes
from megaunigame.parallel.pulse import PULSE
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.disk_errors import may_pass
from megaunigame.storage.pieces import Piece, PieceReader, fingerprint, part
from megaunigame.storage.retries import retried

Say = Callable[[str], None]
Places = dict[str, Sequence[Piece] | None]
"""Name of a parameter -> where its elements lie; None: only rank 0 can make it."""
EVERY_SECONDS = 10.0
"""Between two lines on how far rank 0 is."""


def silent(text: str) -> None:
    """Say nothing."""


def load_weights(model: nn.Module, weights: Weights, world: Ranks, say: Say = silent) -> None:
    """Collective: copy a checkpoint into every parameter of the model. `say`: rank 0's lines about it.

    Raises ModelError on all ranks for a parameter that has no weights, and for a file that one of them cannot read
    (TransientModelError, if that may pass).
    """
    _load(model, dict(model.named_parameters()), weights, world, say)


def load_adapter(model: UnifiedModel, adapter: Weights, what: str, world: Ranks) -> None:
    """Copy trained adapters over the fresh ones. Raises ModelError, naming `what`, when they are those of another model."""
    parameters = {n: p for n, p in model.named_parameters() if group_label(model, n) == LORA}
    shapes = {n: getattr(p, "ds_shape", p.shape) for n, p in parameters.items()}
    check_names(shapes, adapter.names(), what)
    check_shapes(shapes, {name: adapter.shape(name) for name in shapes}, what)
    _load(model, parameters, adapter, world, silent)


def _load(model: nn.Module, parameters: Mapping[str, nn.Parameter], weights: Weights, world: Ranks, say: Say) -> None:
    sliced: dict[str, Any] = {name: p for name, p in parameters.items() if hasattr(p, "ds_tensor")}
    if sliced:
        began = time.monotonic()
        places, prints = _places(sliced, weights, world)
        found = {name: pieces for name, pieces in places.items() if pieces is not None}
        reader = _SliceReader({name: sliced[name] for name in found}, found, world, say)
        most, least = reader.read(prints)
        sent = {name: p for name, p in sliced.items() if name not in found}
        _send_by_module(model, sent, weights, world)
        if world.is_main:
            seconds = time.monotonic() - began
            each = short_bytes(most) if most == least else f"{short_bytes(least)} to {short_bytes(most)}"
            others = sum(element_count(p) * p.element_size() for p in sent.values())
            more = f"; {len(sent)} tensors ({short_bytes(others)}) by rank 0 alone, which sent them" if sent else ""
            say(f"weights: every rank read {each} of its own in {seconds:.1f} s{more}")
    if len(sliced) < len(parameters):
        _check_named(parameters, weights)
    for name, parameter in parameters.items():
        if name not in sliced:
            parameter.data.copy_(weights.read(name))


def _places(parameters: Mapping[str, Any], weights: Weights, world: Ranks) -> tuple[Places, dict[str, str]]:
    """Collective: what rank 0 finds, for all: where the parameters lie, and the fingerprints of those files."""
    places: Places = {}
    prints: dict[str, str] = {}
    problem: UserError | None = None
    if world.is_main:
        try:
            _check_named(parameters, weights)
            for name, parameter in parameters.items():
                # A partition of other numbers than the checkpoint's: only the engine knows how to fill it.
                places[name] = None if hasattr(parameter.ds_tensor, "ds_quant_scale") else weights.pieces(name)
            files = {piece.file for pieces in places.values() for piece in pieces or ()}
            prints = {file: retried(partial(fingerprint, file)) for file in sorted(files)}
        except UserError as error:
            problem = error
        except OSError as error:
            kind = TransientModelError if may_pass(error) else ModelError
            problem = kind(f"Rank 0 cannot read the weights: {_in_words(error)}")
    places, prints, problem = world.broadcast_object((places, prints, problem))
    if problem is not None:
        raise problem
    return places, prints


def _check_named(parameters: Mapping[str, Any], weights: Weights) -> None:
    """Raise ModelError for parameters without weights: what a constructor left there is no value."""
    if missing := sorted(set(parameters) - weights.names()):
        raise ModelError(
            f"The weights lack {len(missing)} parameters of the model: {', '.join(missing[:SHOWN])}. Give a folder whose "
            "config.json and weights belong together; a family of a plugin must name all in `weights`."
        )


class _SliceReader:
    """Reads the slices of one rank."""

    def __init__(self, parameters: Mapping[str, Any], places: Mapping[str, Sequence[Piece]], world: Ranks, say: Say):
        self.parameters, self.places, self.world, self.say = parameters, places, world, say
        self.total = sum(
            piece.count * piece.dtype.itemsize
            for name, parameter in parameters.items()
            for _, elements in slices_of(parameter, world.rank)
            for piece in part(places[name], elements)
        )

    def read(self, prints: Mapping[str, str]) -> tuple[int, int]:
        """Collective: fill all slices; (most, fewest) bytes that a rank read. Raises ModelError on all ranks if one cannot."""
        problem, passes = "", True
        with PieceReader() as reader:
            try:
                if self.world.local_rank == 0:  # one rank of each machine: files may be copies
                    _compare(prints)
                self._read(reader)
            except OSError as error:
                problem, passes = _in_words(error), may_pass(error)
            except ModelError as error:
                problem, passes = str(error), False
        told = self.world.all_gather_object((problem, passes, reader.bytes))
        kind = TransientModelError if all(passes for _, passes, _ in told) else ModelError
        for rank, (found, _, _) in enumerate(told):
            if found:
                raise kind(f"Rank {rank} cannot read the weights: {found}")
        read = [count for _, _, count in told]
        return max(read), min(read)

    def _read(self, reader: PieceReader) -> None:
        began = said = time.monotonic()
        for name, parameter in self.parameters.items():
            for target, elements in slices_of(parameter, self.world.rank):
                reader.read_into(target[: len(elements)], part(self.places[name], elements))
                target[len(elements) :].zero_()
            PULSE.mark()
            if self.world.is_main and (now := time.monotonic()) > said + EVERY_SECONDS:
                said, left = now, (self.total - reader.bytes) * (now - began) / max(reader.bytes, 1)
                self.say(
                    f"weights: rank 0 has read {short_bytes(reader.bytes)} of {short_bytes(self.total)}, {left:.0f} s left"
                )


def slices_of(parameter: Any, rank: int) -> Iterator[tuple[Tensor, range]]:
    """What this rank holds of a partitioned parameter: (memory, elements of the flattened parameter that it begins with).

    Memory beyond the elements is padding. With zero_hpz_partition_size there is a second copy, partitioned over the
    consecutive ranks of a group.
    """
    held = [(parameter.ds_tensor.data, rank)]
    if parameter.ds_secondary_tensor is not None:
        held.append((parameter.ds_secondary_tensor.data, rank % parameter.ds_secondary_tensor_group_size))
    for memory, number in held:
        start, count = number * memory.numel(), parameter.ds_shape.numel()
        yield memory, range(min(start, count), min(start + memory.numel(), count))


def _in_words(error: OSError) -> str:
    return (
        f"{error}. Every rank reads its own part of the weights, so that they must be at the same path on every machine; if "
        "they are, type the same command again."
    )


def _compare(prints: Mapping[str, str]) -> None:
    """Raise ModelError unless the files of this machine are those of rank 0."""
    for file, expected in prints.items():
        if retried(partial(fingerprint, file)) != expected:
            raise ModelError(
                f"{file} is not the file that rank 0 has at this path. Copy the model folder to every machine again."
            )


def _send_by_module(model: nn.Module, parameters: Mapping[str, Any], weights: Weights, world: Ranks) -> None:
    """Collective: rank 0 reads, the partitioning distributes. At most the parameters of one module are whole at any time."""
    for prefix, module in model.named_modules():
        own = {name: p for name, p in module.named_parameters(prefix=prefix, recurse=False) if name in parameters}
        if own:
            # Whole parameters inside the block, rank 0's values on all ranks after it.
            with deepspeed.zero.GatheredParameters(list(own.values()), modifier_rank=0):
                if world.is_main:
                    for name, parameter in own.items():
                        parameter.data.copy_(weights.read(name))
