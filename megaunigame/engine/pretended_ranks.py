"""Gathering and releasing of weights by ZeRO-3, for any number of ranks, in one process, on tensors without data.

The coordinator of deepspeed decides from the order of modules, the sizes of parameters and the ds_config which weights it
gathers and when it releases them. It runs here unchanged, with its hooks; only the collectives do nothing, and gathered
weights are on the meta device. So it moves and holds the bytes of a run without using memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from megaunigame.engine.dora import gather_for_norms, whole_base_weights
from megaunigame.engine.gather_plans import GatherPlans
from megaunigame.engine.gathered_bytes import GatheredBytes
from megaunigame.engine.partitioning import PartitionedParameters


class _Done:
    """The handle of a collective that did nothing."""

    def wait(self, **_: Any) -> None:
        return None


class PretendedRanks:
    """Rank 0 of `ranks` under ZeRO-3. Build a model in `partitioned`, then take micro-steps inside `self.running`."""

    def __init__(self, ds_config: dict[str, Any], ranks: int):
        """Starts a fake process group in this process. Raises RuntimeError if there is one already."""
        if dist.is_initialized():
            raise RuntimeError("A process group is running in this process; pretended ranks need a separate one.")
        self._debug_level = dist.get_debug_level()
        dist.set_debug_level(dist.DebugLevel.OFF)  # its wrapper of collectives would use a group that does not exist
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
        deepspeed.init_distributed(verbose=False)
        knobs = {key: value for key, value in ds_config["zero_optimization"].items() if not key.startswith("offload_")}
        self.ds_config = {**ds_config, "zero_optimization": knobs}  # offloading does not change what is gathered
        self.gathered = GatheredBytes()
        self.most_available = 0
        """Most bytes of gathered weights at once, since the start."""
        self.is_aside = False

    def partitioned(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which a model is constructed."""
        stack = contextlib.ExitStack()
        stack.enter_context(self.running())
        stack.enter_context(_named_meta())
        stack.enter_context(patch.dict(os.environ, {"LOCAL_RANK": "0"}))  # read by zero.Init
        stack.enter_context(PartitionedParameters(self.ds_config))
        return stack

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """The context in which adapters are put into the model: base weights are gathered one layer at a time."""
        with self.running(), _named_meta(), whole_base_weights(self.ds_config):
            yield

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Collectives do nothing, their outputs are on the meta device, and gathers are counted."""
        with (
            patch.object(partition_parameters, "_dist_allgather_fn", self._counted),
            patch.object(partition_parameters.dist, "broadcast", _nothing),
            patch.object(partition_parameters.dist, "all_gather_into_tensor", _nothing),
            patch.object(partitioned_param_coordinator, "assert_ints_same_as_other_ranks", _nothing),
            patch.object(get_accelerator(), "current_device_name", _meta),
        ):
            yield

    def hook(self, model: nn.Module) -> None:
        """Let the coordinator gather for `model`, as deepspeed.initialize does. Call it after `choose_trainable`."""
        knobs = self.ds_config["zero_optimization"]
        options = ("prefetch_bucket_size", "max_reuse_distance", "max_live_parameters", "param_persistence_threshold")
        given = {name: knobs[f"stage3_{name}"] for name in options if f"stage3_{name}" in knobs}
        gather_for_norms(model)
        with self.running():
            self.offload = DeepSpeedZeRoOffload(model, timers=None, ds_config=self.ds_config, overlap_comm=True, **given)
        self.parameters: list[Any] = list(model.parameters())
        self.plans = GatherPlans(model, self.offload, lambda: self.is_aside)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Passes in here have separate traces of gathers, as in `Learner.aside`."""
        self.is_aside = True
        try:
            with self.plans.aside():
                yield
        finally:
            self.is_aside = False

    def available_bytes(self) -> int:
        """Bytes of weights gathered now, including those that always are."""
        return sum(p.ds_numel * p.element_size() for p in self.parameters if p.ds_status != ZeroParamStatus.NOT_AVAILABLE)

    def after_backward(self) -> None:
        """Release what the engine does after every backward."""
        self.offload.release_backward_leftovers()

    def after_update(self) -> None:
        """Release and gather what the engine does around the update."""
        self.offload.partition_all_parameters()
        persistent = self.offload.persistent_parameters
        if persistent:
            with _named_meta():
                persistent[0].all_gather(persistent)

    def close(self) -> None:
        """End the process group: the next rehearsal begins like the first."""
        dist.destroy_process_group()
        dist.set_debug_level(self._debug_level)

    def _counted(self, input_tensor: Tensor, output_tensor: Tensor, group: Any = None) -> _Done:
        self.gathered.total += output_tensor.nbytes
        self.most_available = max(self.most_available, self.available_bytes())
        return _Done()


def _named_meta() -> Any:
    """Puts tensors placed by the accelerator's name on the meta device. Not for a forward: autocast uses that name too."""
    return patch.object(get_accelerator(), "device_name", _meta)


def _meta(*_: Any) -> str:
    return "meta"


def _nothing(*_: Any, **__: Any) -> _Done:
    return _Done()
