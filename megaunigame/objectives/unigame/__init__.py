"""UniGame (arXiv 2511.19413): the model learns from pictures on which an adversary at its visual tokens makes it fail."""

from megaunigame.objectives.unigame.objective import UniGame

__all__ = ["UniGame"]
