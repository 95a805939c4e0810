"""The plan of a run on a cluster: bytes of one GPU, traffic and operations of a step, an estimate of its time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megaunigame.config import Recipe
from megaunigame.engine.dry_run import uncovered_bytes
from megaunigame.engine.element_bytes import REDUCED, WEIGHT
from megaunigame.planning.machines import ACHIEVED_FLOPS, OVERHEAD, Cluster
from megaunigame.planning.operations import Operations
from megaunigame.planning.progress import Progress
from megaunigame.planning.rehearsal import MicroStepCost, Rehearsal, Shape
from megaunigame.planning.states import hpz_group, saved, states
from megaunigame.planning.workload import Workload, workload

LIVE, LATE = "activations, gathered weights", "reduction and update"


@dataclass(frozen=True)
class Plan:
    """One recipe on one cluster."""

    name: str
    source: str
    """Where the shape of the model comes from, in words."""
    cluster: Cluster
    stage: int
    """Of ZeRO."""
    precision: str
    checkpointing: bool
    lora: bool
    global_rows: int | None
    """Rows of all ranks in an optimizer step, if the recipe fixes them."""
    passes: tuple[str, ...]
    rows: dict[str, dict[str, int]]
    """Pass -> term -> rows of a rank in a micro-step."""
    accumulation: int
    sequence_ranks: int
    """Ranks that share their rows."""
    shape: Shape
    elements_per_rank: int
    """Weights that rank 0 holds, including the padding of slices."""
    memory: dict[str, int]
    """Bytes of one GPU by purpose; their sum is the total."""
    host: dict[str, int]
    """Bytes of host memory of one rank."""
    step: MicroStepCost
    """As the recipe asks."""
    checkpointed: MicroStepCost
    """A micro-step with gradient checkpointing."""
    plain: MicroStepCost
    """A micro-step without."""
    gathered: int
    """Bytes of weights that a rank gathers for the learner in an optimizer step."""
    aside_gathered: int
    """Those it gathers for what players do aside, as a mean over optimizer steps."""
    updated: int
    """Bytes of updated weights that a rank gathers after an optimizer step, under ZeRO-2."""
    reduced: int
    """Bytes of gradients that a rank sends in an optimizer step."""
    notes: tuple[str, ...]
    """What else the numbers leave out, in words."""

    @property
    def total(self) -> int:
        """Bytes of one GPU."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.cluster.gpu.memory

    @property
    def operations(self) -> Operations:
        """Of a rank in an optimizer step, players included, as a mean over optimizer steps."""
        aside = self.step.aside.times(self.accumulation / self.shape.rehearsed_every)
        return self.step.learner.times(self.accumulation) + aside

    @property
    def compute_seconds(self) -> float:
        peak = self.cluster.gpu.peak
        return self.operations.seconds(ACHIEVED_FLOPS * peak.bf16, ACHIEVED_FLOPS * peak.fp32)

    @property
    def traffic(self) -> int:
        """Bytes a rank gathers or sends in an optimizer step."""
        return self.gathered + self.aside_gathered + self.updated + self.reduced

    @property
    def network_seconds(self) -> float:
        others = (self.cluster.ranks - 1) / self.cluster.ranks
        return self.traffic * others / self.cluster.collective_bandwidth

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step: with all traffic hidden by computation, and with none hidden."""
        return max(self.compute_seconds, self.network_seconds), self.compute_seconds + self.network_seconds

    @property
    def mfu(self) -> tuple[float, float] | None:
        """Model operations per second over the peak in bf16: at the longest and at the shortest step.

        Those of players are included. None in float32, where it is undefined.
        """
        if self.precision != "bf16":
            return None
        shortest, longest = self.seconds
        peak = self.cluster.gpu.peak.bf16
        return self.operations.model / longest / peak, self.operations.model / shortest / peak

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        estimates = ("total", "fits", "compute_seconds", "network_seconds", "seconds", "mfu")
        return {**asdict(self), "operations": asdict(self.operations), **{name: getattr(self, name) for name in estimates}}


def make_plan(recipe: Recipe, cluster: Cluster, *, like_a_run: bool = False, progress: Progress | None = None) -> Plan:
    """Rehearse `recipe` as rank 0 of `cluster`; `like_a_run`: gathered bytes are equal to those of a run.

    Raises ConfigError for what the trainer would refuse before loading.
    """
    with workload(recipe, cluster.ranks) as work:
        rehearsals, shape, late = _rehearsals(work, like_a_run, progress or Progress(None))
        step = rehearsals[recipe.model.gradient_checkpointing]
        on_gpu, on_host = states(work, shape)
        weight = WEIGHT[recipe.engine.precision]
        trained = sum(elements for elements, is_trained in shape.parameters if is_trained)
        memory = on_gpu | {
            "frozen tokenizer": shape.frozen_bytes,
            **shape.replicated,
            LIVE: max(step.peak, step.aside_peak),
            LATE: late,
            "CUDA, NCCL, fragmentation (assumed)": OVERHEAD,
        }
        return Plan(
            name=recipe.name,
            source=work.shape,
            cluster=cluster,
            stage=work.stage,
            precision=recipe.engine.precision,
            checkpointing=recipe.model.gradient_checkpointing,
            lora=recipe.model.train == "lora",
            global_rows=recipe.batch.global_rows,
            passes=work.plan.passes,
            rows={name: {r.term: r.count for r in work.plan.of_pass(name)} for name in work.plan.passes},
            accumulation=work.accumulation,
            sequence_ranks=work.sequence_ranks,
            shape=shape,
            elements_per_rank=(on_gpu | on_host)["weights"] // weight,
            memory={name: size for name, size in memory.items() if size},
            host=on_host | shape.host | saved(work, shape),
            step=step,
            checkpointed=rehearsals[True],
            plain=rehearsals[False],
            gathered=step.gathered * work.accumulation,
            aside_gathered=step.aside_gathered * work.accumulation // shape.rehearsed_every,
            updated=weight * trained if work.stage == 2 and work.ranks > 1 else 0,
            reduced=REDUCED[recipe.engine.reduce_dtype] * step.reduced * work.accumulation if work.ranks > 1 else 0,
            notes=_notes(work),
        )


def _rehearsals(work: Workload, like_a_run: bool, progress: Progress) -> tuple[dict[bool, MicroStepCost], Shape, int]:
    """Gradient checkpointing or not -> a micro-step; shape and late bytes of the recipe's setting.

    Weights are gathered and released only in the recipe's setting.
    """
    asked = work.recipe.model.gradient_checkpointing
    rehearsals: dict[bool, MicroStepCost] = {}
    for checkpointing in (not asked, asked):
        partitioned = checkpointing == asked and work.stage == 3 and work.ranks > 1
        with progress.line(checkpointing):
            rehearsal = Rehearsal(work, gradient_checkpointing=checkpointing, partitioned=partitioned)
            try:
                with progress.watching(rehearsal.model.layers(), rehearsal.micro_steps(like_a_run=like_a_run)):
                    rehearsals[checkpointing] = rehearsal.rehearse(like_a_run=like_a_run)
                shape, late = rehearsal.shape(), uncovered_bytes(rehearsal.model, work.ds_config, work.ranks)
            finally:
                rehearsal.close()
    return rehearsals, shape, late


def _notes(work: Workload) -> tuple[str, ...]:
    notes = []
    if any(key.startswith("offload_") for key in work.ds_config["zero_optimization"]):
        notes.append("bytes between host and GPU, and the time of an update on the host (offload)")
    if work.sequence_ranks > 1:
        notes.append("traffic between the ranks that share a row")
    if hpz_group(work) > 1:
        notes.append("traffic inside a group of hpZ, which spares the network, is not separated")
    return tuple(notes)
