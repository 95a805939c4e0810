from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megaunigame.data.loading.positions import StreamPositions
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    requests = []
    for number in range(draw(st.integers(1, 4))):
        stream, name = draw(st.sampled_from("ab")), draw(st.sampled_from([UNDERSTAND, GENERATE]))
        requests.append(RowRequest(f"term{number}", name, stream, draw(st.integers(1, 3))))
        if draw(st.booleans()):
            requests.append(RowRequest(f"shares{number}", GENERATE, stream, requests[-1].count, shares=f"term{number}"))
            if draw(st.booleans()):  # what shares is shared in turn, by a term before or after it
                again = RowRequest(f"again{number}", UNDERSTAND, stream, requests[-1].count, shares=f"shares{number}")
                requests.insert(draw(st.integers(0, len(requests))), again)
    return StepPlan(tuple(requests))


def positions_of_step(positions: StreamPositions, request: RowRequest, step: int, base: int) -> list[int]:
    """Positions of one request in one optimizer step, over all ranks and micro-steps."""
    micro_steps = range(step * positions.accumulation, (step + 1) * positions.accumulation)
    return [p for m in micro_steps for rank in range(positions.ranks) for p in positions.of(request, m, rank, base)]


@given(plan=plans(), world=st.sampled_from([1, 2, 4]), scale=st.integers(1, 3), step=st.integers(0, 50))
def test_a_steps_samples_do_not_depend_on_the_world_size(plan, world, scale, step):
    alone = StreamPositions(plan, accumulation=4 * scale, ranks=1)
    together = StreamPositions(plan, accumulation=4 * scale // world, ranks=world)
    for request in plan.requests:
        assert positions_of_step(together, request, step, 17) == positions_of_step(alone, request, step, 17)


run = st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(0, 5))


@given(plan=plans(), runs=st.lists(run, min_size=1, max_size=5))
def test_no_position_is_lost_or_repeated_over_restarts(plan, runs):
    """Each run has its own world size and accumulation, stops anywhere, and the next one starts at its cursor."""
    base = dict.fromkeys(sorted({r.stream for r in plan.requests}), 0)
    taken: dict[str, list[int]] = {stream: [] for stream in base}
    for world, accumulation, steps in runs:
        positions = StreamPositions(plan, accumulation, world)
        for rank in range(world):
            for micro_step in range(steps * accumulation):
                for request in plan.requests:
                    if request.shares is not None:
                        continue
                    taken[request.stream] += positions.of(request, micro_step, rank, base[request.stream])
        base = {stream: position + steps * positions.per_step(stream) for stream, position in base.items()}
    for stream, position in base.items():
        assert sorted(taken[stream]) == list(range(position))


@given(plan=plans(), world=st.integers(1, 3), accumulation=st.integers(1, 3), micro_step=st.integers(0, 30))
def test_terms_that_share_have_the_same_samples(plan, world, accumulation, micro_step):
    positions = StreamPositions(plan, accumulation, world)
    by_term = {r.term: r for r in plan.requests}
    for request in plan.requests:
        if request.shares is not None:
            own = positions.of(request, micro_step, world - 1, 5)
            assert own == positions.of(by_term[request.shares], micro_step, world - 1, 5)
