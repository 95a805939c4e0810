"""What a checkpoint remembers of a run besides weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from megaunigame.config import PRETRAINED
from megaunigame.data.sources.base import Cursor


@dataclass
class TrainState:
    """Everything beside the learner's own shards that the future of a run depends on."""

    step: int = 0
    """Optimizer steps done."""
    cursors: dict[str, Cursor] = field(default_factory=dict)
    """Position of every data stream after `step`."""
    bad_samples: dict[str, Any] = field(default_factory=dict)
    """Rows seen and substituted so far, per stream."""
    weights: str = PRETRAINED
    """What the run began with: `model.weights`."""

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> TrainState:
        cursors = {name: Cursor(**c) for name, c in state["cursors"].items()}
        return cls(state["step"], cursors, state["bad_samples"], state.get("weights", PRETRAINED))
