"""State of a run in a checkpoint, besides the engine's shards."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from megaunigame.config import AUTO, PRETRAINED
from megaunigame.data.sources.base import Cursor


@dataclass
class TrainState:
    """All that the rest of a run depends on, besides the learner's shards."""

    step: int = 0
    """Optimizer steps done."""
    cursors: dict[str, Cursor] = field(default_factory=dict)
    """Position of every data stream after `step`, also of those that only earlier launches read."""
    bad_samples: dict[str, Any] = field(default_factory=dict)
    """Samples read and replaced so far, per stream."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Rows wanted, filled and cut so far, per term."""
    factors: dict[str, float] = field(default_factory=dict)
    """Factors of terms with `weights.TERM.kind=auto`."""
    divergence: dict[str, Any] = field(default_factory=dict)
    """Skipped updates, and the last losses and norms, from which spikes are measured."""
    selection: dict[str, Any] = field(default_factory=dict)
    """The best values of `checkpoint.best` and `early_stop` so far."""
    players: list[str] = field(default_factory=list)
    """Objectives whose players keep state in the checkpoint; empty: none, or not known."""
    weights: str = PRETRAINED
    """`model.weights` of the first launch."""
    weights_from: str = ""
    """`model.weights_from` of the first launch, as it was typed."""
    lora: dict[str, Any] = field(default_factory=dict)
    """`model.lora` of the launch that saved this; empty: all weights of groups are trained, or not known."""
    base: str = ""
    """`base_identity` of the weights the run began with; empty: random ones, or not known."""
    start: str = ""
    """The step folder or model folder it named then: a run goes on, and its newest checkpoint becomes another one."""
    kept_start: str = ""
    """Where `start` is kept, below the run folder, if it is a step folder of another run (checkpoint/first_weights.py)."""
    ranks: int = 0
    """Of the launch that saved this; 0: not known."""
    sequence_ranks: int = 1
    """Ranks that shared every row in that launch."""
    rows_per_step: int = 0
    """Rows of its optimizer steps, over all ranks."""
    data_reset: bool = False
    """`checkpoint.reset_data` of that launch."""
    resume: str = AUTO
    """`checkpoint.resume` of that launch, as it was typed."""

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> TrainState:
        cursors = {name: Cursor(**c) for name, c in state["cursors"].items()}
        first = ("step", "cursors", "bad_samples")
        later = {
            f.name: state[f.name] for f in fields(cls) if f.name in state and f.name not in first
        }  # not in older checkpoints
        return cls(state["step"], cursors, state["bad_samples"], **later)
