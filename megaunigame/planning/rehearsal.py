"""The steps of a recipe on rank 0 of a cluster, on the meta device: live bytes, gathered bytes, operations.

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

from megaunigame.engine.dry_run import dry_run, losses_of_passes
from megaunigame.engine.gathered_bytes import GatheredBytes
from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.engine.memory_plan import GroupSize, group_sizes
from megaunigame.engine.model_flops import CountFlops
from megaunigame.engine.parameters import choose_trainable, element_count
from megaunigame.engine.pretended_ranks import PretendedRanks
from megaunigame.objectives.building import build_players, largest_micro_step
from megaunigame.objectives.player import Context
from megaunigame.planning.fused_attention import fused_attention
from megaunigame.planning.operations import Operations, run_backward
from megaunigame.planning.pretended_world import PretendedWorld
from megaunigame.planning.workload import Workload
from megaunigame.step.micro import MicroStep

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ATTENTION = "sdpa"
"""Of every rehearsal: torch's fused kernels and flash attention hold the same bytes. `eager` also holds (S, S) scores."""


@dataclass(frozen=True)
class MicroStepCost:
    """One rank, one micro-step on the largest legal rows."""

    kept: dict[str, int]
    """Pass -> bytes that its graph holds until the backward, without gathered weights."""
    peak: int
    """Most bytes alive at once: the graph of a pass, gathered weights, gradients until they are reduced."""
    gathered_at_once: int
    """Most bytes of gathered weights alive at once."""
    gathered: int
    """Bytes of weights gathered in one micro-step, once the coordinator has a trace."""
    forward: dict[str, Operations]
    """Pass -> operations, including the frozen tokenizer."""
    backward: Operations
    reduced: int
    """Elements of gradients that are reduced: of a weight once for each pass with a gradient for it."""
    aside_peak: int
    """Most bytes alive at once in what players do aside; 0 without it."""
    aside_gathered: int
    """Bytes of weights gathered for it in one micro-step."""
    aside: Operations

    @property
    def learner(self) -> Operations:
        """Of all passes, forward and backward."""
        return sum(self.forward.values(), self.backward)


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of what players hold."""

    groups: list[GroupSize]
    parameters: list[tuple[int, bool]]
    """Elements of each parameter, and whether it is trained."""
    frozen_bytes: int
    """The frozen tokenizer, in float32."""
    replicated: dict[str, int]
    """What players hold on every GPU."""
    host: dict[str, int]
    """What players hold in the host memory of every rank."""
    rehearsed_every: int = 1
    """Period, in optimizer steps, of the steps that make everything rehearsed."""
    unplanned: tuple[str, ...] = ()
    """What players do in a step but do not rehearse, in words."""


class Rehearsal:
    """The model of a workload on the meta device, to make micro-steps."""

    def __init__(self, work: Workload, *, gradient_checkpointing: bool, partitioned: bool):
        """`partitioned`: gather weights as ZeRO-3 does; one such rehearsal at a time in a process."""
        config = work.recipe.model
        self.work = work
        self.ranks = PretendedRanks(work.ds_config, work.ranks) if partitioned else None
        self.gathered = self.ranks.gathered if self.ranks else GatheredBytes()
        processor = work.family.open_processor(work.folder, max_length=config.max_length)
        with self.ranks.partitioned() if self.ranks else contextlib.nullcontext(), torch.device("meta"):
            self.model = work.family.build(
                work.folder, processor, attention=ATTENTION, gradient_checkpointing=gradient_checkpointing
            )
        self.model.rehearses = True
        if config.pack_tokens:
            self.model.pack_rows(config.pack_tokens)
        with torch.device("meta"):
            tokenizer = self.model.build_frozen()
            self.frozen_bytes = sum(p.numel() * p.element_size() for p in tokenizer.parameters())
            self.model.hold_frozen(tokenizer)
            with self.ranks.loading() if self.ranks else contextlib.nullcontext():
                choose_trainable(self.model, config, work.plan, work.recipe.seed)
            for parameter in self.model.parameters():
                if not hasattr(parameter, "ds_id"):  # adapters always, as in deepspeed.initialize
                    parameter.data = parameter.data.to(DTYPES[work.recipe.engine.precision])
            self.model.train()
        self.aside_operations, self.aside_gathered = Operations(), 0
        """Of what players did aside in this micro-step, so far."""
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        if self.ranks is not None:
            self.ranks.hook(self.model)
        meta = torch.device("meta")
        if work.sequence_ranks > 1:
            self.model.share_sequence(PretendedWorld(0, work.sequence_ranks, 0, meta))
        world = PretendedWorld(0, work.data_ranks, 0, meta)
        context = Context(self.model, self._aside, work.plan, world, work.recipe.seed)
        self.players = build_players(work.objectives, context)
        largest = largest_micro_step(processor, self.players, work.plan)
        inputs, aside = ({name: rows.to(meta) for name, rows in given.items()} for given in (largest.inputs, largest.aside))
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

    def rehearse(self, *, like_a_run: bool) -> MicroStepCost:
        """A micro-step, with what players do aside, after the coordinator has traced the order of modules.

        `like_a_run`: begin with the dry run, as a run does, and continue until gathers repeat exactly. Otherwise two steps
        fewer are made, and layers whose adapters the dry run leaves gathered are counted like all others.
        """
        with self.ranks.running() if self.ranks else contextlib.nullcontext(), fused_attention():
            if self.ranks is not None:
                if like_a_run:
                    micro, leaves = self._rehearsed()
                    dry_run(self.model, micro.inputs, list(micro.losses.values()), leaves)
                for _ in range(2 if like_a_run else 1):
                    self._unmeasured()
            return self._micro_step()

    def micro_steps(self, *, like_a_run: bool) -> int:
        """How many `rehearse` makes, the dry run included."""
        return 1 if self.ranks is None else 4 if like_a_run else 2

    def close(self) -> None:
        if self.ranks is not None:
            self.ranks.close()

    def _unmeasured(self) -> None:
        """A micro-step for the coordinator alone."""
        micro, _ = self._rehearsed()
        for loss, _ in losses_of_passes(self.model, micro.inputs, list(micro.losses.values()), ()):
            self._backward(loss)
        self._after_update()

    def _micro_step(self) -> MicroStepCost:
        kept: dict[str, int] = {}
        forward: dict[str, Operations] = {}
        self.aside_operations, self.aside_gathered = Operations(), 0
        self.gathered.pop()
        with LiveBytes() as live:
            micro, _ = self._rehearsed()
            aside_peak = live.peak if self.aside_operations.total else 0
            live.reset_peak()
            self.gathered.pop()
            backward, reduced = Operations(), 0
            losses = losses_of_passes(self.model, micro.inputs, list(micro.losses.values()), ())
            for name in micro.inputs:
                before = live.current - self._available()
                with CountFlops() as counter:
                    loss, _ = next(losses)
                kept[name], forward[name] = live.current - self._available() - before, Operations.of(counter)
                with CountFlops() as counter:
                    reduced += self._backward(loss)
                backward += Operations.of(counter)
                del loss
        gathered, at_once = self.gathered.pop(), self.ranks.most_available if self.ranks else 0
        self._after_update()
        aside = (aside_peak, self.aside_gathered, self.aside_operations)
        return MicroStepCost(kept, live.peak, at_once, gathered, forward, backward, reduced, *aside)

    def _rehearsed(self) -> tuple[MicroStep, list[Tensor]]:
        """The largest micro-step with the rows and losses that players added in their rehearsal, and their leaves."""
        micro = dataclasses.replace(self.largest, inputs=dict(self.largest.inputs), losses={})
        return micro, [leaf for player in self.players for leaf in player.rehearse(micro)]

    def _backward(self, loss: Tensor) -> int:
        reduced = run_backward(self.model, loss)
        if self.ranks is not None:
            self.ranks.after_backward()
        return reduced

    def _available(self) -> int:
        return self.ranks.available_bytes() if self.ranks else 0

    def _after_update(self) -> None:
        if self.ranks is not None:
            self.ranks.after_update()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """As in a run, no weight requires a gradient; dropout stays on, which changes no shape.

        A pass of the learner that a player reads is outside, and is not counted twice.
        """
        aside = self.ranks.aside() if self.ranks else contextlib.nullcontext()
        for parameter in self.trained:
            parameter.requires_grad_(False)
        before = self.gathered.total
        try:
            with aside, CountFlops() as counter:
                yield
        finally:
            for parameter in self.trained:
                parameter.requires_grad_(True)
        self.aside_operations += Operations.of(counter)
        self.aside_gathered += self.gathered.total - before
