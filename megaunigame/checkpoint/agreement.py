"""Work that may fail on one rank, in a world whose ranks must go on or stop together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megaunigame.errors import UserError
from megaunigame.parallel.ranks import Ranks

T = TypeVar("T")


def on_main(world: Ranks, work: Callable[[], T]) -> T:
    """Collective: what rank 0 made by `work`, on every rank; a UserError of it is raised on every rank."""
    made: T | UserError | None = None
    if world.is_main:
        try:
            made = work()
        except UserError as error:
            made = error
    made = world.broadcast_object(made)
    if isinstance(made, UserError):
        raise made
    return made  # type: ignore[return-value]


def on_every_rank(world: Ranks, work: Callable[[], None]) -> None:
    """Collective: every rank does `work`, which makes no collective; the first rank's UserError is raised on all of them."""
    problem: UserError | None = None
    try:
        work()
    except UserError as error:
        problem = error
    for found in world.all_gather_object(problem):
        if found is not None:
            raise found
