"""The runs of a sweep are carried out; table, numbers and plot are written after each."""

from __future__ import annotations

from collections.abc import Sequence

from megaunigame.sweeping.definition import Sweep
from megaunigame.sweeping.machine import places, this_machine, train_command
from megaunigame.sweeping.plot import write_plot
from megaunigame.sweeping.runs import Run
from megaunigame.sweeping.scheduler import Outcome, Scheduler
from megaunigame.sweeping.table import collect, write_table


def carry_out(sweep: Sweep, runs: list[Run]) -> Outcome:
    machine = this_machine()
    scheduler = Scheduler(
        runs,
        places(machine, sweep.ranks, sweep.jobs),
        command=lambda run: train_command(run, sweep.ranks),
        after_run=lambda: write_results(sweep, runs),
        say=lambda line: print(line, flush=True),
    )
    return scheduler.carry_out()


def write_results(sweep: Sweep, runs: Sequence[Run]) -> None:
    results = collect(list(runs))
    write_table(sweep, results)
    write_plot(sweep, results)
