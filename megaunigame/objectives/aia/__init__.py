"""AIA (arXiv 2511.22663): a loss that pulls the cross-modal attention of each task towards targets of that task."""

from megaunigame.objectives.aia.objective import AIA

__all__ = ["AIA"]
