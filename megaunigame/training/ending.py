"""The last things the ranks of a run do together: report, and leave. By now all is saved, and the exit code is decided."""

from __future__ import annotations

import logging
import threading

import torch

from megaunigame.errors import UserError
from megaunigame.monitoring.run_record import RunRecord
from megaunigame.parallel.pulse import PULSE, REPORT
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.disk_errors import in_words

CLOSE_SECONDS = 60.0
"""The ranks have just met: no one has to be waited for."""
log = logging.getLogger(__name__)


def report(world: Ranks, record: RunRecord | None, *, complete: bool) -> None:
    """Collective, inside the watch: rank 0, which has the `record`, writes the report, and the others wait for it.

    A report that cannot be written is a warning: the run is as complete, or as well saved, as with one.
    """
    if record is not None:
        with PULSE.phase(REPORT, in_step=True):  # a disk that hangs is noticed, also by a rank alone
            try:
                print(f"report: {record.finish(complete=complete)}", flush=True)
            except Exception as error:  # of the disk, or of a plot: no reason to make the run again
                unexpected = not isinstance(error, (OSError, UserError))
                why = in_words(error, record.folder) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                log.warning(
                    "The report of %s could not be written (%s). Nothing else is lost; the same command writes it again.",
                    *(record.folder, why),
                    exc_info=unexpected,
                )
    world.barrier()


def leave(world: Ranks) -> None:
    """Close the process group, after the watch: the ranks that end first would look lost to it.

    A peer that dies now, or a device that hangs, changes nothing of the run, so it is said and does not change the exit code.
    """
    errors: list[BaseException] = []

    def close() -> None:
        try:
            if world.device.type == "cuda":
                torch.cuda.set_device(world.device)  # a new thread begins on the first one
            world.close()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=close, name="close", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive() or errors:
        why = f"{type(errors[0]).__name__}: {errors[0]}" if errors else f"no answer within {CLOSE_SECONDS:g} s"
        log.warning(
            "The ranks could not close their connections together (%s). The run had ended before: nothing of it is lost.", why
        )
