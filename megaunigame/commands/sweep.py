"""Train every arm of a sweep with every seed, and compare the arms in one table and one plot.

    megaunigame sweep unigame_budget
    megaunigame sweep unigame_budget --dry-run             list the runs and their progress
    megaunigame sweep unigame_budget seeds=[0] output=runs/try --set schedule.steps=20
    megaunigame sweep unigame_budget ranks=2 jobs=4        four runs at a time, of two ranks each
    megaunigame sweep unigame_budget --table               only write table and plot again

`key=value` changes the sweep file; `--set key=value` changes the recipe, in all runs. Runs go to OUTPUT/ARM/seed-S, as many
at a time as the cores or GPUs of this machine allow. Ctrl-C or SIGTERM: the runs save and stop; the same command continues.
Writes OUTPUT/table.md, results.csv and plot.png after every run. Exit code 1: some runs are not done.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", help="YAML file, or the name of one in launch/sweeps/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the sweep file, for example seeds=[0]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="for the recipe of all runs; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their state and start none")
    parser.add_argument("--table", action="store_true", help="write table and plot from the runs that are done and start none")


def run(options: argparse.Namespace) -> None:
    from megaunigame.sweeping.definition import load_sweep
    from megaunigame.sweeping.plot import PLOT_FILE
    from megaunigame.sweeping.running import carry_out, write_results
    from megaunigame.sweeping.runs import describe, plan_runs
    from megaunigame.sweeping.scheduler import Outcome
    from megaunigame.sweeping.table import RESULTS_FILE, TABLE_FILE, collect, missing

    sweep = load_sweep(options.sweep, options.overrides, options.set)
    runs = plan_runs(sweep)
    if options.dry_run:
        print(describe(runs))
        return
    outcome = Outcome() if options.table else carry_out(sweep, runs)
    write_results(sweep, runs)
    print(f"\n{(Path(sweep.output) / TABLE_FILE).read_text()}\nin {sweep.output}: {TABLE_FILE} {RESULTS_FILE} {PLOT_FILE}")
    for line in missing(sweep, collect(runs)):
        print(f"shown as '-': {line}")
    if not outcome.complete:
        raise SystemExit(f"{outcome.describe()}\nThe same command continues with the rest.")
