"""How a launch script begins and ends: its options, and its exit code.

    0    done
    1    a fault of the program, with its traceback; or one that may pass (a lost rank, a lost shard), with one message: the
         same command may succeed
    2    an error that the user can fix, with one message; the same command fails again
    75   a signal ended the run, which is saved (or had nothing to save): the same command goes on
    130  Ctrl-C ended a command that saves nothing, or came to a run a second time, which then ended at once without saving
    143  SIGTERM, likewise; 129: SIGHUP
    141  the reader of the output has ended, as `head` does; without a message
    137  not from here: SIGKILL, of a kernel out of memory or of a launcher (`deepspeed` makes 247 of it); as 1

Launchers differ in what they make of it, see docs/clusters.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from megaunigame.errors import Interrupted, LostRankError, TransientError, UserError, is_full_disk
from megaunigame.parallel.outcome import OUTCOME

OTHERS_WAIT_SECONDS = 6.0
"""Rank 0 prints at once, and the launcher then sends SIGTERM to the other ranks (`deepspeed` at once, launch/node.py after
`SIGTERM_SECONDS`), which have the same error: they say nothing. If only another rank failed, it prints after this delay: before
the watches of the others end the run, so that its exit code counts."""
NO_READER = 128 + signal.SIGPIPE


def options_of(doc: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a script with this docstring."""
    return argparse.ArgumentParser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The options of a command that runs one recipe."""
    parser.add_argument(
        "recipe", help="YAML file, or a name (`megaunigame recipes` lists them); or the recipe.yaml in the folder of a run"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.lr=1e-5")


def _dismissed(seconds: float) -> bool:
    """Whether SIGTERM has come since the error, or comes in this time. A process that does not listen is ended by it."""
    OUTCOME.failed = True
    until = time.monotonic() + seconds
    while not OUTCOME.dismissed and time.monotonic() < until:
        time.sleep(0.05)
    return OUTCOME.dismissed


def run_to_exit(main: Callable[[list[str]], None], arguments: list[str]) -> NoReturn:
    """Run `main` and end the process with one of the codes above."""
    try:
        main(arguments)
    except Interrupted as end:
        if os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):  # its reader may have ended by the same signal
                print(end)
        code = Interrupted.exit_code
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("Ended by Ctrl-C.", file=sys.stderr)
        code = 128 + signal.SIGINT
    except LostRankError as error:
        print(f"rank {os.environ.get('RANK', '0')}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    except (UserError, TransientError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if not rank or not _dismissed(OTHERS_WAIT_SECONDS):
            who = f"rank {rank}: " if rank else ""
            print(f"{who}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1 if isinstance(error, TransientError) else 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_has_ended():
            code = NO_READER
        elif is_full_disk(error):
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


def _reader_has_ended() -> bool:
    """Whether the output is a pipe that nobody reads: another pipe or connection may be the broken one."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
