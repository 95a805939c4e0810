"""AIA (arXiv 2511.22663): a loss on the distance of each task's cross-modal attention from its targets."""

from megaunigame.objectives.aia.objective import AIA

__all__ = ["AIA"]
