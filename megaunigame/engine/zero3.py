"""The learner under DeepSpeed: partitioned loading, forward, backward, step. ZeRO-2 and ZeRO-3, any world size.

Rules of this file, each measured to matter:

- one engine; its module is entered through `forward(inputs)` only;
- every pass has its own backward, right after its forward. With one backward through two passes, the whole gradient of each
  weight of both (64 GB for 32 billion) waits on every rank for the second one, and so do all activations of the first. The
  engine counts backwards, not steps, so it needs two things that it does not do by itself. It *adds* to what a sum holds when
  a parameter takes no part in the first backward of a step (lm_head, when generation comes first), under ZeRO-3 and with an
  optimizer on the host: `update` clears the sums. And what a step ends with (copying sums to the host) it does in the last
  backward, for the parameters of that one alone: no backward is announced as the last, and `update` ends the step;
- a trained parameter that takes part in no pass of the plan is updated with a zero gradient: it must not decay
  (`optimizer_groups`);
- anything that must not touch the engine's gradient state (evaluation, the dry run) goes through `module`, not `engine`:
  the engine's forward hooks would silently make the NEXT step's gradient wrong.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__
from deepspeed.utils import nvtx
from torch import Tensor, nn

from megaunigame.config import RANDOM, Recipe
from megaunigame.engine.capacity import check_everywhere
from megaunigame.engine.dora import gather_for_norms, whole_base_weights
from megaunigame.engine.ds_config import zero_stage
from megaunigame.engine.ema import Ema
from megaunigame.engine.gather_plans import GatherPlans
from megaunigame.engine.gathered_bytes import count_gathered_bytes
from megaunigame.engine.loading import Say, load_adapter, load_weights, silent
from megaunigame.engine.parameters import adamw, choose_trainable, optimizer_groups
from megaunigame.engine.partitioning import PartitionedParameters
from megaunigame.engine.random_weights import fill_randomly
from megaunigame.engine.reductions import time_reductions
from megaunigame.engine.row_lengths import check_row_lengths
from megaunigame.engine.update_gate import Accept, UpdateGate
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.inputs import PassInputs, PassOutput
from megaunigame.step.phases import BACKWARD, OPTIMIZER, Phases, PhaseTimer
from megaunigame.step.requests import StepPlan

# deepspeed would compile this op (half a minute, under a lock shared by all environments) for a collective we do not use.
__compatible_ops__["deepspeed_shm_comm"] = False


class Learner:
    """The model that is trained, under its engine."""

    gate: UpdateGate
    """In the step of the engine's optimizer, once it is built."""

    def __init__(self, engine: Any, world: Ranks, stage: int, trained_groups: list[list[nn.Parameter]]):
        self.engine = engine
        self.world = world
        self.zero_stage = stage
        self.trained_groups = trained_groups
        """Trained parameters by optimizer group."""
        self.is_aside = False
        self.gather_plans: GatherPlans | None = None
        """None: weights are not partitioned."""
        self.gathered = count_gathered_bytes()
        """Bytes of weights this rank has gathered so far."""
        self.phases = Phases()
        self.ema: Ema | None = None
        """None: no average of the weights is kept."""

    @property
    def masters(self) -> list[Tensor]:
        """The flat fp32 master weights of this rank."""
        optimizer = self.engine.optimizer
        return optimizer.fp32_partitioned_groups_flat if self.zero_stage == 3 else optimizer.single_partition_of_fp32_groups

    @property
    def module(self) -> UnifiedModel:
        """The model itself, with partitioned weights gathered on use; for passes that must not accumulate gradients."""
        return self.engine.module

    def forward(self, inputs: PassInputs) -> PassOutput:
        return self.engine(inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to that of the step, and free the graph. A loss without any trained weight has none; that
        is so on all ranks or on none.

        `loss` is this rank's share of the global loss, of one pass. The engine averages over ranks, hence the factor.
        """
        if not loss.requires_grad:
            return
        with self.phases(BACKWARD):
            self.engine.set_gradient_accumulation_boundary(False)
            self.engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def update(self, accept: Accept = math.isfinite) -> bool:
        """Update the weights with the gradients of all backwards since the last update, if `accept` says so of their norm.

        Returns whether. After a refusal weights and optimizer are as before, and no gradient is left. A norm that is not finite
        is refused in any case.
        """
        optimizer = self.engine.optimizer
        with self.phases(OPTIMIZER):
            optimizer.finalize_gradient_accumulation_boundary()
            self.engine.set_gradient_accumulation_boundary(True)
            with self.gate.asking(accept):
                self.engine.step()
            for gradients in self._sums():
                gradients.zero_()
        return self.gate.accepted

    def average(self, step: int) -> None:
        """Take the weights after optimizer step `step` (1 is the first) into their average, if one is kept."""
        if self.ema is not None:
            with self.phases(OPTIMIZER):
                self.ema.update(step)

    def _sums(self) -> Iterator[Tensor]:
        """The engine's sums of gradients that outlive an update."""
        optimizer = self.engine.optimizer
        if self.zero_stage == 3:
            yield optimizer.grad_partitions_flat_buffer
        elif optimizer.cpu_offload:
            yield from optimizer.accumulated_grads_in_cpu.values()

    def measure(self, phases: PhaseTimer) -> None:
        """Mark the phases of the engine in `phases` from now on."""
        self.phases = phases
        time_reductions(self.engine.optimizer, phases)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The learner is frozen: passes through `module` that are not the learner's.

        No weight requires a gradient, so the engine's accumulation does not change, and dropout is off. The flags are restored
        before the learner's next forward, where the engine reads them. Gradient checkpointing stays on. May come between two
        of the learner's passes, or between a forward and its backward.
        """
        trained = [p for group in self.trained_groups for p in group]
        # Attention dropout is a float, not a module.
        droppers = (m for m in self.module.modules() if isinstance(m, nn.Dropout) or hasattr(m, "attention_dropout"))
        dropouts = [m for m in droppers if m.training]
        for parameter in trained:
            parameter.requires_grad_(False)
        for dropout in dropouts:
            dropout.training = False
        self.is_aside = True
        try:
            with self.gather_plans.aside() if self.gather_plans is not None else contextlib.nullcontext():
                yield
        finally:
            self.is_aside = False
            for parameter in trained:
                parameter.requires_grad_(True)
            for dropout in dropouts:
                dropout.training = True

    def moment_bytes(self) -> int:
        """Bytes of AdamW's moments on this rank; none before the first update of a fresh run."""
        states = self.engine.optimizer.optimizer.state.values()
        return sum(value.nbytes for state in states for name, value in state.items() if name.startswith("exp_avg"))

    def set_lr(self, lr: float) -> None:
        """Learning rate of the next update, times the factor of each group."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group["factor"]

    def grad_norm(self) -> float:
        """Norm of the last step's gradient before clipping, over all trained parameters of all ranks; infinity when it is not
        finite."""
        return self.gate.norm


def build_learner(
    family: type[UnifiedModel],
    recipe: Recipe,
    plan: StepPlan,
    ds_config: dict[str, Any],
    world: Ranks,
    weights: Weights | None = None,
    adapter: Weights | None = None,
    say: Say = silent,
) -> Learner:
    """Construct, load, choose what is trained, and initialize DeepSpeed. No rank ever holds the whole model (ZeRO-3).

    `weights`: to begin with, checked before; None: those in `model.path`. `adapter`: None: fresh adapters.
    `say`: see `load_weights`.
    """
    config, stage = recipe.model, zero_stage(ds_config)
    partitioned = stage == 3
    nvtx.enable_nvtx = (
        world.device.type == "cuda"
    )  # marks for Nsight around each call of the engine: no profiler of a CPU reads them
    deepspeed.init_distributed(verbose=False)  # uses the existing process group; zero.Init reads the world size from it
    processor = family.open_processor(config.path, max_length=config.max_length)
    check_row_lengths(processor, plan)
    options: dict[str, Any] = {"attention": config.attention, "gradient_checkpointing": config.gradient_checkpointing}
    with torch.device("meta"):
        planned = family.build(config.path, processor, **options)
        if config.pack_tokens:
            planned.pack_rows(config.pack_tokens)
        check_everywhere(planned, recipe, plan, stage=stage, world=world)
    if config.weights != RANDOM:
        planned.check_frozen(config.path)
    with PartitionedParameters(ds_config) if partitioned else contextlib.nullcontext():
        model = family.build(config.path, processor, **options)
    if config.pack_tokens:
        model.pack_rows(config.pack_tokens)
    # The tokenizers in fp32: in bf16 about one target code in a hundred would differ.
    if config.weights == RANDOM:
        tokenizer = model.build_frozen()
        for module in (model, tokenizer):
            fill_randomly(module, recipe.seed, world)
        model.hold_frozen(tokenizer.to(world.device))
    else:
        load_weights(model, family.weights(config.path) if weights is None else weights, world, say)
        model.load_frozen(config.path, world.device)
    with whole_base_weights(ds_config) if partitioned else contextlib.nullcontext():
        choose_trainable(model, config, plan, recipe.seed)
    if partitioned:
        gather_for_norms(model)
    if adapter is not None:
        load_adapter(model, adapter, f"model.adapter={config.adapter}", world)
    groups = optimizer_groups(model, recipe.optimizer, plan)
    trained = [list(group["params"]) for group in groups]
    optimizer = adamw(groups, recipe.optimizer, world.device)
    # Under ZeRO-2 the engine may cast the whole module to bf16; rotary frequencies must stay exact fp32.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    for name, buffer in engine.module.named_buffers():
        buffer.data = buffers[name].to(world.device)
    engine.module.train()
    learner = Learner(engine, world, stage, trained)
    learner.gate = UpdateGate(engine.optimizer, stage, world)
    if recipe.ema.decay:
        learner.ema = Ema(learner.masters, recipe.ema)
    if partitioned:
        learner.gather_plans = GatherPlans(engine.module, engine.optimizer.parameter_offload, lambda: learner.is_aside)
    return learner
