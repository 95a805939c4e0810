"""What a resumed run takes from the launch that saved it, at any number of ranks, and what it must have in common with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from megaunigame.checkpoint.typed_paths import same_place
from megaunigame.config import AUTO, CheckpointConfig, ModelConfig, Recipe, legal_ranks
from megaunigame.data.sources.base import Cursor, Stream
from megaunigame.engine.parameters import LORA
from megaunigame.errors import CheckpointError
from megaunigame.training.state import TrainState


def check_first_weights(folder: Path, saved: TrainState, model: ModelConfig, base: str) -> None:
    """Raise CheckpointError when the run began with other weights than the recipe names now, or scaled its adapters otherwise.

    `base`: `base_identity` of what the recipe names now. An empty one, here or in `saved`, is not compared.
    """
    for key, began, now, is_same in (
        ("weights", saved.weights, model.weights, saved.weights == model.weights),
        ("weights_from", saved.weights_from, model.weights_from, same_place(saved.weights_from, model.weights_from)),
    ):
        if not is_same:
            raise CheckpointError(
                f"{folder} belongs to a run with model.{key}={began}, this one has model.{key}={now}. Give another "
                f"`output`, or type checkpoint.resume=never; or model.{key}={began} to resume it."
            )
    if saved.lora and model.train == LORA:
        for name, value in (("alpha", model.lora.alpha), ("rslora", model.lora.rslora)):
            saved_value = saved.lora.get(name, False)
            if saved_value != value:
                raise CheckpointError(
                    f"{folder} was trained with model.lora.{name}={saved_value}, this run has {value}: its adapters would be "
                    f"scaled by another factor. Type model.lora.{name}={str(saved_value).lower()} to resume it."
                )
    if saved.base and base and saved.base != base:
        started = f" and model.weights_from={model.weights_from}" if model.weights_from else ""
        raise CheckpointError(
            f"{folder} was trained on other weights than those now in model.path={model.path}{started}: names and shapes may "
            "be the same, the content is not. Give the folder that the run began with in model.path, or give another `output`."
        )


def check_batch(
    folder: Path,
    saved: TrainState,
    recipe: Recipe,
    ranks: int,
    rows_per_micro_step: int,
    rows: int,
    shared_by: int = 1,
) -> None:
    """Raise CheckpointError when only the number of ranks, or of those that share a row, has changed the rows of a step.

    `rows`: of a step of this launch, over all ranks; `shared_by`: its ranks that share a row. A recipe that gives
    batch.global_rows says itself what a step is made of.
    """
    same = saved.ranks == 0 or saved.ranks * shared_by == ranks * saved.sequence_ranks
    if same or rows == saved.rows_per_step or recipe.batch.global_rows is not None:
        return
    legal = [shared_by * number for number in legal_ranks(saved.rows_per_step, rows_per_micro_step)]
    start = f"start one of these numbers of ranks: {', '.join(map(str, legal))}" if legal else "give other rows per micro-step"
    raise CheckpointError(
        f"{folder} was saved by {_ranks(saved.ranks, saved.sequence_ranks)} with {saved.rows_per_step} rows in an optimizer "
        f"step; this launch of {_ranks(ranks, shared_by)} would have {rows}, because batch.accumulation is fixed. To go on as "
        f"before, type batch.global_rows={saved.rows_per_step} batch.accumulation=null and {start}. For another batch on "
        f"purpose, type batch.global_rows={rows} batch.accumulation=null."
    )


def check_streams(folder: Path, saved: Mapping[str, Cursor], streams: Mapping[str, Stream]) -> None:
    """Raise CheckpointError when a stream has only been given another name: its cursor would not be found, and samples that the
    run has seen would come again.

    `saved`: cursors by the names they were saved with; empty when this launch begins its data again.
    """
    resting = {name: cursor for name, cursor in saved.items() if name not in streams}
    for name in streams.keys() - saved.keys():
        began = streams[name].cursor
        for before, cursor in resting.items():
            if (cursor.seed, cursor.identity) == (began.seed, began.identity):
                raise CheckpointError(
                    f"{folder} has a stream {before!r} at sample {cursor.position:,}, which no objective reads now, and the "
                    f"new stream {name!r} has the same data: it would begin at sample 0 again. Call it data.{before}, and type "
                    f"stream={before} in its objectives; or type checkpoint.reset_data=true to begin all data again."
                )


def check_players(folder: Path, run: Path, saved: Sequence[str], players: Sequence[str]) -> None:
    """Raise CheckpointError when the saves of this launch would go on without the state of an objective.

    `run`: the folder of this launch. What it goes on from in the folder of another run stays there.
    """
    lost = [f"objectives.{name}" for name in saved if name not in players]
    if lost and folder.resolve().is_relative_to(run.resolve()):
        raise CheckpointError(
            f"{folder} has the state of {', '.join(lost)}, for which this recipe has no use: the next saves would be without "
            f"it, and replace those with it. Give the same objectives; or, to go on without, type output=ANOTHER "
            f"checkpoint.resume={folder}."
        )


def begins_data_again(checkpoint: CheckpointConfig, saved: TrainState) -> bool:
    """Whether this launch begins its data streams at their first sample.

    Once only: a job that is given again with the same command goes on in its data. A step folder that is newly named in
    checkpoint.resume is a new request.
    """
    done = checkpoint.resume == AUTO or same_place(checkpoint.resume, saved.resume)
    return checkpoint.reset_data and not (saved.data_reset and done)


def continued(saved: TrainState, checkpoint: CheckpointConfig, ranks: int, rows: int) -> TrainState:
    """The state this launch goes on with."""
    reset, resume = checkpoint.reset_data, checkpoint.resume
    state = dataclasses.replace(saved, ranks=ranks, rows_per_step=rows, data_reset=reset, resume=resume)
    if begins_data_again(checkpoint, saved):
        state = dataclasses.replace(state, cursors={}, bad_samples={"reads": {}, "bad": {}}, rows={})
    return state


def describe(
    folder: Path,
    saved: TrainState,
    checkpoint: CheckpointConfig,
    ranks: int,
    rows: int,
    *,
    rotates: bool = False,
    streams: Sequence[str] | None = None,
    changes: str = "",
    shared_by: int = 1,
) -> str:
    """The line on the console. `rotates`: terms take turns by micro-step, of which each rank makes its own. `streams`: those of
    this launch; none: not to be compared. `changes`: of settings, in words. `shared_by`: ranks that have the same rows."""
    parts = [f"resuming from step {saved.step}{f' ({changes})' if changes else ''}, saved in {folder}"]
    if checkpoint.resume != AUTO and Path(checkpoint.resume) != folder:
        parts.append(
            f"checkpoint.resume={checkpoint.resume} was done by an earlier launch of this output (to do it again, give another "
            "`output`)"
        )
    if saved.ranks and (saved.ranks, saved.sequence_ranks) != (ranks, shared_by):
        now = f"{ranks}" if shared_by == saved.sequence_ranks == 1 else _ranks(ranks, shared_by)
        parts.append(f"saved by {_ranks(saved.ranks, saved.sequence_ranks)}, continued by {now}")
        if rotates and saved.ranks * shared_by != ranks * saved.sequence_ranks:
            parts.append("terms in rotation get other samples from here on")
    if saved.ranks and saved.rows_per_step != rows:
        parts.append(f"saved with {saved.rows_per_step} rows a step, continued with {rows}")
    if begins_data_again(checkpoint, saved):
        parts.append("all data streams begin again (checkpoint.reset_data=true)")
    elif checkpoint.reset_data:
        parts.append("data streams go on: checkpoint.reset_data=true was done by an earlier launch")
    if streams is not None and not begins_data_again(checkpoint, saved):
        parts += [f"stream {name} begins at its first sample" for name in streams if name not in saved.cursors]
        resting = {name: cursor for name, cursor in saved.cursors.items() if name not in streams}
        parts += [f"stream {name} rests at sample {cursor.position:,}" for name, cursor in resting.items()]
    return "; ".join(parts)


def all_done(step: int, steps: int, *, in_epochs: bool = False) -> str:
    """What to say to a launch that has nothing left to train; empty if it has. `in_epochs`: how the schedule is given."""
    key = "schedule.epochs" if in_epochs else "schedule.steps"
    return f"{step} of {steps} steps are done; raise {key} to go on" if step >= steps else ""


def _ranks(number: int, shared_by: int = 1) -> str:
    text = "1 rank" if number == 1 else f"{number} ranks"
    return f"{text} ({shared_by} to a row)" if shared_by > 1 else text
