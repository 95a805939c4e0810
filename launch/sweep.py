"""Train every arm of a sweep with every seed, and compare the arms in one table and one plot.

    python launch/sweep.py launch/sweeps/unigame_budget.yaml
    python launch/sweep.py launch/sweeps/unigame_budget.yaml --dry-run             list the runs and their progress
    python launch/sweep.py launch/sweeps/unigame_budget.yaml seeds=[0] output=runs/try --set schedule.steps=20
    python launch/sweep.py launch/sweeps/unigame_budget.yaml ranks=2 jobs=4        four runs at a time, of two ranks each
    python launch/sweep.py launch/sweeps/unigame_budget.yaml --table               only write table and plot again

`key=value` changes the sweep file; `--set key=value` changes the recipe, in all runs. Runs go to OUTPUT/ARM/seed-S, as many
at a time as the cores or GPUs of this machine allow. Ctrl-C or SIGTERM: the runs save and stop; the same command continues.
Writes OUTPUT/table.md, results.csv and plot.png after every run. Exit code 1: some runs are not done.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.launching import options_of, run_to_exit
from megaunigame.sweeping.definition import Sweep, load_sweep
from megaunigame.sweeping.machine import places, this_machine, train_command
from megaunigame.sweeping.plot import PLOT_FILE, write_plot
from megaunigame.sweeping.runs import Run, describe, plan_runs
from megaunigame.sweeping.scheduler import Outcome, Scheduler
from megaunigame.sweeping.table import RESULTS_FILE, TABLE_FILE, collect, missing, write_table

TRAIN = Path(__file__).resolve().with_name("train.py")


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    parser.add_argument("sweep", help="YAML file, see launch/sweeps/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the sweep file, for example seeds=[0]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="for the recipe of all runs; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their state and start none")
    parser.add_argument("--table", action="store_true", help="write table and plot from the runs that are done and start none")
    options = parser.parse_intermixed_args(arguments)

    sweep = load_sweep(options.sweep, options.overrides, options.set)
    runs = plan_runs(sweep)
    if options.dry_run:
        print(describe(runs))
        return
    outcome = Outcome() if options.table else train(sweep, runs)
    write_results(sweep, runs)
    print(f"\n{(Path(sweep.output) / TABLE_FILE).read_text()}\nin {sweep.output}: {TABLE_FILE} {RESULTS_FILE} {PLOT_FILE}")
    for line in missing(sweep, collect(runs)):
        print(f"shown as '-': {line}")
    if not outcome.complete:
        raise SystemExit(f"{outcome.describe()}\nThe same command continues with the rest.")


def train(sweep: Sweep, runs: list[Run]) -> Outcome:
    machine = this_machine()
    scheduler = Scheduler(
        runs,
        places(machine, sweep.ranks, sweep.jobs),
        command=lambda run: train_command(run, TRAIN, sweep.ranks, machine),
        after_run=lambda: write_results(sweep, runs),
        say=lambda line: print(line, flush=True),
    )
    return scheduler.carry_out()


def write_results(sweep: Sweep, runs: list[Run]) -> None:
    results = collect(runs)
    write_table(sweep, results)
    write_plot(sweep, results)


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
