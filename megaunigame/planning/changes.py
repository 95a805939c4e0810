"""Changes that make a plan take less memory, with their costs: estimates by arithmetic on the parts of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from megaunigame.engine.element_bytes import WEIGHT
from megaunigame.planning.plan import LATE, LIVE, Plan
from megaunigame.planning.rehearsal import MicroStepCost
from megaunigame.planning.states import GRADIENTS, STATES, WEIGHTS
from megaunigame.planning.units import gib

MOST_NODES = 1024
NODE = 8
"""GPUs of a usual node."""
GATHERED_LIMIT = 10**9
"""Elements that `stage3_max_live_parameters` of ds_configs/zero3.json lets a rank gather ahead."""


@dataclass(frozen=True)
class Parts:
    """Bytes of one GPU, split by what a change affects."""

    weights: int
    gradients: int
    optimizer: int
    late: int
    """Of the reduction and the update."""
    graphs: int
    """Kept by passes until the backward."""
    passing: int
    """Peak of temporary bytes inside operations."""
    whole: int
    """Gradients waiting for another pass."""
    gathered: int
    aside: int
    """Peak of what players do aside."""
    fixed: int
    """Not affected by any of these changes."""

    @property
    def total(self) -> int:
        live = max(self.graphs + self.passing + self.whole + self.gathered, self.aside)
        return self.weights + self.gradients + self.optimizer + self.late + live + self.fixed


@dataclass(frozen=True)
class Change:
    """One change of the recipe or of the cluster."""

    typed: str
    cost: str
    apply: Callable[[Parts], Parts]

    @property
    def kind(self) -> str:
        """The setting or option that it changes."""
        return self.typed.partition("=")[0].partition(" ")[0]

    @property
    def exclusive(self) -> str:
        """At most one change of each such key can be made."""
        return "cluster" if self.typed.startswith("--") else self.kind


def parts(plan: Plan) -> Parts:
    """The parts of the plan without changes."""
    graphs, passing, whole = _live(plan, plan.step, plan.step.gathered_at_once)
    changed = {name: plan.memory.get(name, 0) for name in (WEIGHTS, GRADIENTS, STATES, LATE)}
    return Parts(
        weights=changed[WEIGHTS],
        gradients=changed[GRADIENTS],
        optimizer=changed[STATES],
        late=changed[LATE],
        graphs=graphs,
        passing=passing,
        whole=whole,
        gathered=plan.step.gathered_at_once,
        aside=plan.step.aside_peak,
        fixed=plan.total - sum(changed.values()) - plan.memory[LIVE],
    )


def _live(plan: Plan, step: MicroStepCost, gathered: int) -> tuple[int, int, int]:
    """Parts of the peak of a micro-step besides gathered weights: graphs, temporary bytes, waiting gradients."""
    graphs = min(sum(step.kept.values()), step.peak)
    rest = max(0, step.peak - graphs - gathered)
    trained = sum(elements for elements, is_trained in plan.shape.parameters if is_trained)
    whole = min(rest, WEIGHT[plan.precision] * trained) if len(plan.passes) > 1 else 0
    return graphs, rest - whole, whole


def changes_of(plan: Plan) -> Iterator[Change]:
    """The cheapest first; those of one kind (more nodes) from the smallest to the largest."""
    if not plan.checkpointing:
        yield _checkpointing(plan)
    if all(count % 2 == 0 for terms in plan.rows.values() for count in terms.values()):
        cost = f"the same rows in {2 * plan.accumulation} micro-steps, which gather twice as many weights"
        halved = "half the rows of every objective and twice the batch.accumulation"  # rows aside stay
        yield Change(halved, cost, lambda p: replace(p, graphs=p.graphs // 2, passing=p.passing // 2))
    if plan.stage == 2 and plan.cluster.ranks > 1:
        sliced = partial(_gathering, _gathered(plan), weights=_slices(plan))
        yield Change("engine.ds_config=ds_configs/zero3.json", "weights are gathered in every pass", sliced)
    if not plan.lora:
        lost = [group.name for group in plan.shape.groups if group.trained and group.name != "lm"]
        cost = f"adapters only (not trained: {', '.join(lost)})" if lost else "adapters only"
        # The adapters need less than the bytes of the reduction, which stay in the estimate.
        yield Change("model.train=lora", cost, lambda p: replace(p, gradients=0, optimizer=0, whole=0))
    yield from _larger_clusters(plan)
    if WEIGHTS not in plan.host and STATES not in plan.host:
        host = plan.memory.get(GRADIENTS, 0) + plan.memory.get(STATES, 0) + _slices(plan)
        cost = f"{gib(host)} of host memory a rank, and an update on the host"
        gathered = plan.step.gathered_at_once or _gathered(plan)
        offloaded = partial(_gathering, gathered, weights=0, gradients=0, optimizer=0)
        yield Change("engine.ds_config=ds_configs/zero3_offload.json", cost, offloaded)


def _checkpointing(plan: Plan) -> Change:
    """The rehearsal with checkpointing was not partitioned: gathered bytes come on top."""
    step, gathered = plan.checkpointed, plan.step.gathered_at_once
    graphs, passing, whole = _live(plan, step, 0)
    aside = step.aside_peak + gathered if step.aside_peak else 0
    share = step.backward.again / max(1, plan.plain.learner.model)
    cost = f"{share:.0%} more operations in the learner's passes"
    return Change(
        "model.gradient_checkpointing=true",
        cost,
        lambda p: replace(p, graphs=graphs, passing=passing, whole=whole, aside=aside),
    )


def _slices(plan: Plan) -> int:
    """Bytes of the weights of a rank under ZeRO-3."""
    elements = sum(elements for elements, _ in plan.shape.parameters)
    return WEIGHT[plan.precision] * elements // plan.cluster.ranks


def _gathered(plan: Plan) -> int:
    """Bytes of gathered weights under ZeRO-3, for a plan that was rehearsed with whole weights."""
    elements = sum(elements for elements, _ in plan.shape.parameters)
    stays_whole = len(plan.passes) > 1 and not plan.checkpointing
    return WEIGHT[plan.precision] * (elements if stays_whole else min(elements, GATHERED_LIMIT))


def _gathering(gathered: int, p: Parts, **changed: int) -> Parts:
    """The changed parts, with at least `gathered` bytes of gathered weights."""
    return replace(p, gathered=max(p.gathered, gathered), **changed)


def _larger_clusters(plan: Plan) -> Iterator[Change]:
    """A full node, then twice, four times ... the nodes, while the rows of a step can be divided over the ranks."""
    cluster = plan.cluster
    sizes = [(cluster.nodes, NODE)] if cluster.gpus_per_node < NODE else []
    doublings = (MOST_NODES // cluster.nodes).bit_length()
    sizes += [(cluster.nodes * 2**power, cluster.gpus_per_node) for power in range(1, doublings)]
    rows = sum(count for terms in plan.rows.values() for count in terms.values())
    for nodes, per_node in sizes:
        data_ranks, left = divmod(nodes * per_node, plan.sequence_ranks)
        if not left and (plan.global_rows is None or plan.global_rows % (rows * data_ranks) == 0):
            typed = f"--nodes {nodes}" if nodes > cluster.nodes else f"--gpus-per-node {per_node}"
            cost = f"{nodes * per_node} GPUs instead of {cluster.ranks}"
            yield Change(typed, cost, _spread(plan, nodes * per_node))


def _spread(plan: Plan, ranks: int) -> Callable[[Parts], Parts]:
    share = plan.cluster.ranks / ranks
    gathered = _gathered(plan) if plan.stage == 3 and plan.cluster.ranks == 1 else 0

    def apply(p: Parts) -> Parts:
        weights = int(p.weights * share) if plan.stage == 3 else p.weights
        states = {"gradients": int(p.gradients * share), "optimizer": int(p.optimizer * share)}
        return _gathering(gathered, p, weights=weights, **states)

    return apply
