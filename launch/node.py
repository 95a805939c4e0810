"""Start the ranks of one machine, pass signals on to them, and end with their exit code.

    python launch/node.py --ranks 8 launch/train.py launch/recipes/RECIPE.yaml                     one machine
    python launch/node.py --ranks 8 --nodes 4 --node 2 --address HOST launch/train.py RECIPE.yaml  the third of four

SIGTERM, SIGINT, SIGHUP and SIGUSR1 go to every rank, and the run then saves for as long as it needs: the `deepspeed` command
kills it after 30 seconds, and torchrun turns every exit code but 0 into 1. When a rank fails, the others are ended. Exit codes
are those of megaunigame/launching.py, and 128 + n when signal n killed a rank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.launching import options_of, run_to_exit
from megaunigame.parallel.team import run_team


def main(arguments: list[str]) -> NoReturn:
    parser = options_of(__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="ranks of this machine: one for each GPU")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--node", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--address", default="127.0.0.1", help="host name of machine 0")
    parser.add_argument("--port", type=int, default=29500, help="free port of machine 0")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs="...")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-u", options.script, *options.arguments]
    place = {"nodes": options.nodes, "node": options.node, "address": options.address, "port": options.port}
    sys.exit(run_team(command, options.ranks, **place))


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
