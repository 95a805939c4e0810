"""What a replay prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megaunigame.diagnosis.replay import RowResult
from megaunigame.training.kept_rows import KeptStep


def title(kept: KeptStep, checkpoint: Path | None) -> str:
    """The step, and whose weights are used; a warning where they are not those of that step."""
    exact = f"step-{kept.step - 1:08d}"
    whose = f"the weights of {checkpoint}" if checkpoint else "the weights the run began with"
    line = f"step {kept.step} of a run of {kept.world_size} ranks, with {whose}"
    is_exact = kept.step == 1 if checkpoint is None else checkpoint.name == exact
    if is_exact:
        return line
    return f"{line}\nnote: in the run they were those after step {kept.step - 1}, which were not saved: rows may be finite here"


def row_line(result: RowResult) -> str:
    """One line."""
    row = result.row
    place = f"{row.stream} {row.position:,} in {row.shard or 'no shard'}" if row.stream else "made by a player"
    drawn = ", with another random draw than in the run" if result.draws else ""
    verdict = "finite" if result.is_finite else f"NOT FINITE, first in {result.module}"
    where = f"rank {result.rank}, micro-step {result.micro_step}, {result.pass_name}"
    return (
        f"{where}: {row.term}, {row.key or 'no sample'} ({place}): "
        f"loss {result.loss:.6g} (in the run {float(row.loss):.6g}), gradient norm {result.grad_norm:.6g}, {verdict}{drawn}"
    )


def summary(results: Sequence[RowResult]) -> str:
    """How many rows are not finite, and what to do about them."""
    broken = [result for result in results if not result.is_finite]
    drawn = sum(result.draws for result in results)
    if not broken and drawn:
        return (
            f"{len(results)} rows, all finite with these weights. The losses of {drawn} of them depend on a random draw, which "
            "was another one in the run: a draw may have broken them there."
        )
    if not broken:
        return f"{len(results)} rows, all finite with these weights: no row is broken by itself."
    return (
        f"{len(broken)} of {len(results)} rows are not finite. Where it is all rows, the weights are the cause; where it is a "
        "few, look at their samples (megaunigame prepare verify SHARDS), and leave them out with a filter (data.NAME.where)."
    )
