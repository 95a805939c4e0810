"""Checkpoints of other runs, made of one that is there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from megaunigame.checkpoint.manifest import MANIFEST, TRAIN_STATE, read_manifest
from megaunigame.storage.pending import PendingFile


def change_state(step_folder: Path, **values: Any) -> None:
    """Set fields of the saved TrainState, in a checkpoint that stays complete."""
    manifest = read_manifest(step_folder)
    state = json.loads((step_folder / TRAIN_STATE).read_text())
    assert set(values) <= set(state)
    written = PendingFile(TRAIN_STATE, content=json.dumps(state | values).encode()).write(step_folder)
    files = manifest.files | {TRAIN_STATE: written}
    (step_folder / MANIFEST).write_text(dataclasses.replace(manifest, files=files).as_json())
