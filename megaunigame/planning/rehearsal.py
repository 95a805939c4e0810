"""A recipe's steps as rank 0 of a cluster would make them, on the meta device: bytes alive, bytes gathered, operations.

The modules are the real ones, on the largest legal rows; under ZeRO-3 deepspeed's own coordinator gathers and releases their
weights (`PretendedRanks`). Under ZeRO-2 weights are whole and nothing is gathered.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.engine.dry_run import walk
from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.engine.memory_plan import GroupSize, group_sizes
from megaunigame.engine.model_flops import CountFlops
from megaunigame.engine.parameters import choose_trainable, element_count
from megaunigame.engine.pretended_ranks import PretendedRanks
from megaunigame.objectives.building import build_players, largest_micro_step
from megaunigame.objectives.player import Stage
from megaunigame.planning.fused_attention import fused_attention
from megaunigame.planning.operations import Operations, loss_of, run_backward
from megaunigame.planning.pretended_world import PretendedWorld
from megaunigame.planning.workload import Workload, on_meta
from megaunigame.step.micro import MicroStep

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ATTENTION = "sdpa"
"""Of every rehearsal: torch's fused kernels and flash attention hold the same. `eager` holds (S, S) scores on top."""


@dataclass(frozen=True)
class Rehearsed:
    """One rank, one micro-step on the largest legal rows."""

    kept: dict[str, int]
    """Pass -> bytes that its graph holds until the backward, gathered weights not among them."""
    peak: int
    """Most bytes alive at once: graphs of all passes, gathered weights, weight gradients that wait for another pass."""
    gathered_at_once: int
    """Most bytes of gathered weights alive at once."""
    gathered: int
    """Bytes of weights gathered in one micro-step, once the coordinator knows the order of modules."""
    forward: dict[str, Operations]
    """Pass -> operations, those of the frozen tokenizer included."""
    backward: Operations
    attack_peak: int
    """Most bytes alive at once in an attack; 0 without one."""
    attack_gathered: int
    """Bytes of weights gathered in the attack of one micro-step."""
    attack: Operations

    @property
    def learner(self) -> Operations:
        """Of all passes, forward and backward."""
        return sum(self.forward.values(), self.backward)


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of what is held next to it."""

    groups: list[GroupSize]
    parameters: list[tuple[int, bool]]
    """Elements of each parameter, and whether it is trained."""
    frozen_bytes: int
    """The frozen tokenizer, in float32."""
    replicated: dict[str, int]
    """What objectives hold on every GPU."""
    host: dict[str, int]
    """What objectives hold in the host memory of every rank."""
    rehearsed_every: int = 1
    """Optimizer steps from one that makes all that is rehearsed to the next."""
    unplanned: tuple[str, ...] = ()
    """What players do and do not rehearse, in words."""


class Rehearsal:
    """The model of a workload on the meta device, ready to make micro-steps."""

    def __init__(self, work: Workload, *, gradient_checkpointing: bool, partitioned: bool):
        """`partitioned`: gather weights as ZeRO-3 does; one such rehearsal at a time in a process."""
        config = work.recipe.model
        self.work = work
        self.ranks = PretendedRanks(work.ds_config, work.ranks) if partitioned else None
        processor = work.open_processor()
        with self.ranks.partitioned() if self.ranks else contextlib.nullcontext(), torch.device("meta"):
            self.model = work.family.build(
                work.folder, processor, attention=ATTENTION, gradient_checkpointing=gradient_checkpointing
            )
        with torch.device("meta"):
            tokenizer = self.model.build_frozen()
            self.frozen_bytes = sum(p.numel() * p.element_size() for p in tokenizer.parameters())
            self.model.hold_frozen(tokenizer)
            choose_trainable(self.model, config, work.plan, work.recipe.seed)
            for parameter in self.model.parameters():
                if not hasattr(parameter, "ds_id"):  # adapters always, as in deepspeed.initialize
                    parameter.data = parameter.data.to(DTYPES[work.recipe.engine.precision])
            self.model.train()
        self.attack_operations, self.attack_gathered = Operations(), 0
        """Of the attack of this micro-step, so far."""
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        if self.ranks is not None:
            self.ranks.hook(self.model)
        world = PretendedWorld(0, work.ranks, 0, torch.device("meta"))
        stage = Stage(self.model, self._aside, work.plan, world, work.recipe.seed, work.accumulation)
        self.players = build_players(work.objectives, stage)
        largest = largest_micro_step(processor, self.players, work.plan)
        inputs, aside = ({name: on_meta(rows) for name, rows in given.items()} for given in (largest.inputs, largest.aside))
        self.largest = dataclasses.replace(largest, inputs=inputs, aside=aside)

    def shape(self) -> Shape:
        players = self.players
        return Shape(
            group_sizes(self.model),
            [(element_count(p), p.requires_grad) for p in self.model.parameters()],
            self.frozen_bytes,
            {name: size for player in players for name, size in player.replicated_bytes().items()},
            {name: size for player in players for name, size in player.host_bytes().items()},
            max((player.rehearsed_every for player in players), default=1),
            tuple(player.unplanned for player in players if player.unplanned),
        )

    def rehearse(self, *, like_a_run: bool) -> Rehearsed:
        """A micro-step, with its attack where the plan has one, after the coordinator has recorded the order of modules.

        `like_a_run`: begin as a run does, with its dry run, and wait until gathers repeat exactly. Without, two steps less are
        made, and layers whose adapters the dry run leaves gathered are counted as all others.
        """
        with self._running(), fused_attention():
            if self.ranks is not None:
                if like_a_run:
                    micro, leaves = self._rehearsed()
                    walk(self.model, micro.inputs, list(micro.losses.values()), leaves)
                for _ in range(2 if like_a_run else 1):
                    self._unmeasured()
            return self._micro_step()

    def close(self) -> None:
        if self.ranks is not None:
            self.ranks.close()

    def _unmeasured(self) -> None:
        """A micro-step for the coordinator alone."""
        micro, _ = self._rehearsed()
        losses = [loss_of(self.model(name, inputs)) for name, inputs in micro.inputs.items()]
        run_backward(self.model, sum_of([*micro.losses.values(), *losses]))
        self._after_update()

    def _micro_step(self) -> Rehearsed:
        kept: dict[str, int] = {}
        forward: dict[str, Operations] = {}
        self.attack_operations, self.attack_gathered = Operations(), 0
        self._gathered()
        with LiveBytes() as live:
            micro, _ = self._rehearsed()
            attack_peak = live.peak if micro.aside else 0
            live.reset_peak()
            self._gathered()
            losses = list(micro.losses.values())
            for name, inputs in micro.inputs.items():
                before = live.current - self._available()
                with CountFlops() as counter:
                    losses.append(loss_of(self.model(name, inputs)))
                kept[name], forward[name] = live.current - self._available() - before, Operations.of(counter)
            with CountFlops() as counter:
                run_backward(self.model, sum_of(losses))
        gathered, at_once = self._gathered(), self.ranks.most_available if self.ranks else 0
        self._after_update()
        attacks = (attack_peak, self.attack_gathered, self.attack_operations)
        return Rehearsed(kept, live.peak, at_once, gathered, forward, Operations.of(counter), *attacks)

    def _rehearsed(self) -> tuple[MicroStep, list[Tensor]]:
        """The largest micro-step after what players rehearse: with the rows and losses they joined, and their leaves."""
        micro = dataclasses.replace(self.largest, inputs=dict(self.largest.inputs), losses={})
        return micro, [leaf for player in self.players for leaf in player.rehearse(micro)]

    def _gathered(self) -> int:
        """Bytes gathered since the last call."""
        return self.ranks.gathered.taken() if self.ranks else 0

    def _available(self) -> int:
        return self.ranks.available_bytes() if self.ranks else 0

    def _after_update(self) -> None:
        if self.ranks is not None:
            self.ranks.after_backward()
            self.ranks.after_update()

    def _running(self) -> contextlib.AbstractContextManager[None]:
        return self.ranks.running() if self.ranks else contextlib.nullcontext()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """No weight takes a gradient, as in a run; dropout stays, which changes no shape. What happens inside is an attack's.

        A pass of the learner that an attack reads is outside, and is not counted twice.
        """
        aside = self.ranks.aside() if self.ranks else contextlib.nullcontext()
        for parameter in self.trained:
            parameter.requires_grad_(False)
        before = self.ranks.gathered.total if self.ranks else 0
        try:
            with aside, CountFlops() as counter:
                yield
        finally:
            for parameter in self.trained:
                parameter.requires_grad_(True)
        self.attack_operations += Operations.of(counter)
        self.attack_gathered += self.ranks.gathered.total - before if self.ranks else 0


def sum_of(losses: list[Tensor]) -> Tensor:
    """() their sum."""
    return torch.stack(losses).sum()
