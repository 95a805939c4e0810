"""How a launch script ends: exit code 0, or one message and exit code 2 for errors the user can fix."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from megaunigame.errors import UserError

OTHERS_WAIT_SECONDS = 5.0
"""Rank 0 prints at once, and the launcher then ends the other ranks before they repeat it. If only another rank failed, it
prints after this delay."""


def run_to_exit(main: Callable[[list[str]], None], arguments: list[str]) -> NoReturn:
    """Run `main` and end the process with 0; a UserError becomes its message and 2, any other error its traceback and 1."""
    try:
        main(arguments)
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(OTHERS_WAIT_SECONDS)
        print(
            f"{type(error).__name__}: {error}" if not rank else f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr
        )
        sys.stderr.flush()
        # Not sys.exit: worker processes and process-group threads of a run that never began must not delay the end.
        os._exit(2)
    except Exception:
        # Loader workers ignore the SIGTERM an ordinary exit would send them, and the exit would wait for them forever.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    # Threads of torch and gloo can abort the interpreter's exit: a run that is saved and reported must not look failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
