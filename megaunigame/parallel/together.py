"""An error of one rank becomes an error of all: a rank that stopped alone would leave the others in a collective."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch

from megaunigame.errors import LostRankError, TransientError, UserError, is_full_disk
from megaunigame.parallel.ranks import Ranks

SHOWN = 4
"""Different messages."""


@contextmanager
def finishing(finish: Callable[[], object]) -> Iterator[None]:
    """An error of the block that `raise_all` has raised on every rank, or the OSError that it leaves to one rank: `finish`, a
    collective, is done before it goes on."""
    try:
        yield
    except LostRankError:
        raise
    except (UserError, TransientError, OSError):  # others, such as a lost connection, may be those of one rank
        finish()
        raise


def raise_together(world: Ranks, error: Exception | None) -> None:
    """Collective: raises on every rank when any rank has an `error`."""
    failed = torch.tensor([error is not None], dtype=torch.float32, device=world.device)
    if world.all_reduce_max(failed).item() > 0:
        raise_all(world, error)


def raise_all(world: Ranks, error: Exception | None) -> NoReturn:
    """Collective, called by all ranks when some have an `error`. Raises an error that names those ranks and their hosts: a
    UserError when any rank has one to be fixed by hand, else a TransientError.

    A rank whose own error is neither raises that one, with its traceback.
    """
    mine = None
    if isinstance(error, (UserError, TransientError)):
        mine = type(error), str(error), socket.gethostname()
    elif error is not None:
        text = str(error).strip()
        said = f"{type(error).__name__}: {text.splitlines()[-1] if text else ''} (its traceback is in the output of that rank)"
        mine = UserError if is_full_disk(error) else TransientError, said, socket.gethostname()
    everywhere = world.all_gather_object(mine)
    if error is not None and (world.size == 1 or not isinstance(error, (UserError, TransientError))):
        raise error
    ranks_of: dict[str, list[str]] = {}
    for rank, found in enumerate(everywhere):
        if found is not None:
            ranks_of.setdefault(found[1], []).append(f"{rank} ({found[2]})")
    kinds = [found[0] for found in everywhere if found is not None]
    parts = [f"Rank {', '.join(ranks[:SHOWN])}{_more(ranks)}: {text}" for text, ranks in ranks_of.items()]
    message = " ".join(parts[:SHOWN]) + (f" {len(parts) - SHOWN} other errors are in the logs." if len(parts) > SHOWN else "")
    raise common_kind(kinds)(message) from error


def common_kind(kinds: Sequence[type[Exception]]) -> type[Exception]:
    """What must be fixed by hand goes first, and the more exact kind before the base."""
    return min(kinds, key=lambda kind: (issubclass(kind, TransientError), kind in (UserError, TransientError)))


def _more(ranks: list[str]) -> str:
    return f" and {len(ranks) - SHOWN} more ranks" if len(ranks) > SHOWN else ""
