"""UniGame (arXiv 2511.19413): the model learns from pictures that an adversary made hard by perturbing its visual tokens."""

from megaunigame.objectives.unigame.objective import UniGame

__all__ = ["UniGame"]
