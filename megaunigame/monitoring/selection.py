"""What evaluations have decided about a run, as the report says it."""

from __future__ import annotations

SELECTION_FILE = "selection.json"
BEST, STOPPED = "best", "stopped"
"""Its entries: a sentence each; empty where there is nothing to say."""
