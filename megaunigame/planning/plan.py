"""The plan of a run on a cluster: bytes of one GPU, traffic and operations of a step, an estimate of its time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megaunigame.config import Recipe
from megaunigame.engine.dry_run import uncovered_bytes
from megaunigame.planning.machines import ACHIEVED_FLOPS, OVERHEAD, Cluster
from megaunigame.planning.rehearsal import Rehearsal, Rehearsed, Shape
from megaunigame.planning.workload import Workload, workload

STATES = 16
"""Bytes of an element that is trained: gradient, master weight and two moments in float32."""
MASTERS = 12
"""Of these, without the gradient."""


@dataclass(frozen=True)
class Plan:
    """One recipe on one cluster."""

    name: str
    cluster: Cluster
    stage: int
    """Of ZeRO."""
    passes: tuple[str, ...]
    rows: dict[str, dict[str, int]]
    """Pass -> term -> rows of a rank in a micro-step."""
    accumulation: int
    shape: Shape
    elements_per_rank: int
    """Of weights that rank 0 holds, padding of the slices included."""
    memory: dict[str, int]
    """Bytes of one GPU by what they are for; their sum is the total."""
    host: dict[str, int]
    """Bytes of host memory of one rank."""
    step: Rehearsed
    """As the recipe asks."""
    checkpointed: Rehearsed
    """A micro-step with gradient checkpointing."""
    plain: Rehearsed
    """A micro-step without; its operations are those of the model."""
    gathered: int
    """Bytes of weights that a rank gathers in an optimizer step, attacks left out."""
    reduced: int
    """Bytes of gradients that a rank hands over in an optimizer step."""

    @property
    def total(self) -> int:
        """Bytes of one GPU."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.cluster.gpu.memory

    @property
    def attack_flops(self) -> int:
        return self.step.attack_flops * self.accumulation

    @property
    def model_flops(self) -> int:
        """Operations of a rank in an optimizer step, nothing counted twice."""
        return (sum(self.plain.forward_flops.values()) + self.plain.backward_flops) * self.accumulation

    @property
    def executed_flops(self) -> int:
        """With what gradient checkpointing computes again, and with attacks."""
        micro = sum(self.step.forward_flops.values()) + self.step.backward_flops + self.step.attack_flops
        return micro * self.accumulation

    @property
    def compute_seconds(self) -> float:
        return self.executed_flops / (ACHIEVED_FLOPS * self.cluster.gpu.flops)

    @property
    def network_seconds(self) -> float:
        others = (self.cluster.ranks - 1) / self.cluster.ranks
        return (self.gathered + self.reduced) * others / self.cluster.collective_bandwidth

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step: with traffic hidden by computation, and with none of it hidden."""
        return max(self.compute_seconds, self.network_seconds), self.compute_seconds + self.network_seconds

    @property
    def mfu(self) -> tuple[float, float]:
        """Share of the peak that model operations reach: at the longest and at the shortest step."""
        shortest, longest = self.seconds
        peak = self.cluster.gpu.flops
        return self.model_flops / longest / peak, self.model_flops / shortest / peak

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        estimates = ("total", "fits", "model_flops", "executed_flops", "compute_seconds", "network_seconds", "seconds", "mfu")
        return {**asdict(self), **{name: getattr(self, name) for name in estimates}}


def make_plan(recipe: Recipe, cluster: Cluster, *, like_a_run: bool = False) -> Plan:
    """Rehearse `recipe` as rank 0 of `cluster`; `like_a_run`: so that gathered bytes are equal to those of a run.

    Raises ConfigError for what the trainer would refuse before loading.
    """
    with workload(recipe, cluster.ranks) as work:
        partitioned = work.stage == 3 and work.ranks > 1
        rehearsals: dict[bool, Rehearsed] = {}
        for checkpointing in (not recipe.model.gradient_checkpointing, recipe.model.gradient_checkpointing):
            asked = checkpointing == recipe.model.gradient_checkpointing
            rehearsal = Rehearsal(work, gradient_checkpointing=checkpointing, partitioned=partitioned and asked)
            try:
                rehearsals[checkpointing] = rehearsal.rehearse(like_a_run=like_a_run and asked)
                if asked:
                    shape, late = rehearsal.shape(), uncovered_bytes(rehearsal.model, work.ds_config, work.ranks)
            finally:
                rehearsal.close()
        step = rehearsals[recipe.model.gradient_checkpointing]
        on_gpu, on_host = _states(work, shape)
        memory = on_gpu | {
            "frozen tokenizer": shape.frozen_bytes,
            **shape.replicated,
            "activations, gathered weights, whole gradients": max(step.peak, step.attack_peak),
            "reduction and update": late,
            "CUDA, NCCL, fragmentation (assumed)": int(OVERHEAD),
        }
        weight = 2 if recipe.engine.precision == "bf16" else 4
        reduced = 2 if recipe.engine.reduce_dtype == "bf16" else 4
        trained = sum(elements for elements, is_trained in shape.parameters if is_trained)
        return Plan(
            name=recipe.name,
            cluster=cluster,
            stage=work.stage,
            passes=work.plan.passes,
            rows={name: {r.term: r.count for r in work.plan.of_pass(name)} for name in work.plan.passes},
            accumulation=work.accumulation,
            shape=shape,
            elements_per_rank=on_gpu.get("weights", on_host.get("weights", 0)) // weight,
            memory=memory,
            host=on_host | shape.host,
            step=step,
            checkpointed=rehearsals[True],
            plain=rehearsals[False],
            gathered=step.gathered * work.accumulation,
            reduced=reduced * trained * work.accumulation,
        )


def _states(work: Workload, shape: Shape) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of weights, gradients and optimizer of one rank: on the GPU, and on the host where the ds_config offloads."""
    zero = work.ds_config["zero_optimization"]
    weight = 2 if work.recipe.engine.precision == "bf16" else 4
    slices = work.ranks if work.stage == 3 else 1
    trained = sum(-(-elements // work.ranks) for elements, is_trained in shape.parameters if is_trained)
    threshold = zero.get("stage3_param_persistence_threshold", 0) if slices > 1 else 0
    states = {
        "weights": weight * sum(-(-elements // slices) for elements, _ in shape.parameters),
        "gradients": (STATES - MASTERS) * trained,
        "optimizer": MASTERS * trained,
    }
    offloaded = {name for key, name in (("offload_param", "weights"), ("offload_optimizer", "optimizer")) if key in zero}
    offloaded |= {"gradients"} if "offload_optimizer" in zero else set()
    persistent = weight * sum(elements for elements, _ in shape.parameters if elements <= threshold)
    on_gpu = {name: size for name, size in states.items() if name not in offloaded} | {"weights that stay whole": persistent}
    return on_gpu, {name: size for name, size in states.items() if name in offloaded}
