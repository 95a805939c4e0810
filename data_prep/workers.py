"""Work in several processes that survives the death of one; `multiprocessing.Pool` would wait for ever."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from tqdm import tqdm

from megaunigame.errors import DataError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
ATTEMPTS = 2
"""Processes that an item may cost."""
ADVICE = "The usual cause is memory: type fewer --workers. The same command again continues with what is missing"


class _Worker:
    """A process and our end of its pipe."""

    def __init__(self, work: Callable[[Item], Result]):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that its death closes the pipe
        self.number: int | None = None
        """Of the item it works on."""

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, name: Callable[[Item], str]
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in the order in which they are done. `work`, items and results must be picklable.

    An item whose worker dies is told, by `name`, and tried once more in a new process; the others go on. Raises what `work`
    raises, as soon as it does; DataError when all others are done and some killed their worker twice, or when one worker after
    another dies.
    """
    waiting, deaths, in_a_row = deque(range(len(items))), Counter[int](), 0
    team: list[_Worker] = []
    try:
        while waiting or any(worker.number is not None for worker in team):
            _give_out(work, items, waiting, team, workers)
            busy = {worker.connection: worker for worker in team if worker.number is not None}
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                number, worker.number = worker.number, None
                assert number is not None
                try:
                    good, result = connection.recv()
                except (EOFError, ConnectionError):
                    worker.end()
                    team.remove(worker)
                    deaths[number] += 1
                    in_a_row += 1
                    again = deaths[number] < ATTEMPTS
                    cause = _cause(worker.process.exitcode)
                    if in_a_row > ATTEMPTS * workers + 1:
                        raise DataError(f"{in_a_row} workers died one after another, the last one {cause}. {ADVICE}") from None
                    then = "it is tried again" if again else "it is left out for now"
                    tqdm.write(f"{name(items[number])}: its worker {cause}; {then}, the others go on", file=sys.stderr)
                    if again:
                        waiting.append(number)
                    continue
                in_a_row = 0
                if not good:
                    raise result
                yield items[number], result
    finally:
        for worker in team:
            worker.end()
    lost = [name(items[number]) for number, times in sorted(deaths.items()) if times == ATTEMPTS]
    if lost:
        raise DataError(f"{', '.join(lost[:10])}: the worker died {ATTEMPTS} times; all others are done. {ADVICE}")


def _give_out(
    work: Callable[[Item], Result], items: Sequence[Item], waiting: deque[int], team: list[_Worker], workers: int
) -> None:
    """Give an item to every idle worker; fewer than `workers` are joined by new ones."""
    for worker in [worker for worker in team if worker.number is None][: len(waiting)]:
        try:
            worker.connection.send(items[waiting[0]])
        except OSError:  # it died while it was idle
            worker.end()
            team.remove(worker)
        else:
            worker.number = waiting.popleft()
    while waiting and len(team) < workers:
        worker = _Worker(work)
        team.append(worker)
        worker.number = waiting.popleft()
        try:
            worker.connection.send(items[worker.number])
        except OSError:  # it died at its start, which reading its answer tells
            return


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def _serve(work: Callable[[Item], Result], connection: Connection) -> None:
    """Work on what comes until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        answer: tuple[bool, object]
        try:
            answer = True, work(item)
        except UserError as error:
            answer = False, error
        except Exception:  # sent as text: not every error can be pickled
            answer = False, RuntimeError(traceback.format_exc())
        connection.send(answer)
