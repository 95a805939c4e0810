"""How a launch script begins and ends: its options; exit code 0, or one message and exit code 2 for errors the user can fix."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from megaunigame.errors import LostRankError, UserError

OTHERS_WAIT_SECONDS = 5.0
"""Rank 0 prints at once, and the launcher then ends the other ranks before they repeat it. If only another rank failed, it
prints after this delay."""


def options_of(doc: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a script with this docstring."""
    return argparse.ArgumentParser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def options_of_a_recipe(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a script that runs one recipe."""
    parser = options_of(doc)
    parser.add_argument("recipe", help="YAML file, see launch/recipes/; or the recipe.yaml in the folder of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.lr=1e-5")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser


def run_to_exit(main: Callable[[list[str]], None], arguments: list[str]) -> NoReturn:
    """Run `main` and end the process with 0; a UserError becomes its message and 2, any other error its traceback and 1."""
    try:
        main(arguments)
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(OTHERS_WAIT_SECONDS)
        who = f"rank {rank}: " if rank else ""
        print(f"{who}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 2
    except LostRankError as error:
        print(f"rank {os.environ.get('RANK', '0')}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            print(f"{type(error).__name__}: {error.strerror}{where}. Make room, then give the command again.", file=sys.stderr)
            code = 2
        else:
            traceback.print_exc()
            code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    # Not sys.exit. Of a run that never began, worker processes and process-group threads would delay it; loader workers ignore
    # the SIGTERM it would send them, and it would wait for them forever; threads of torch and gloo can abort it, and a run that
    # is saved and reported must not look failed.
    try:
        sys.stdout.flush()  # its reader may be gone
    finally:
        os._exit(code)
