"""UniMRG (arXiv 2601.21406): the model also generates pixels, depth and segmentation of its input, to understand it better."""

from megaunigame.objectives.unimrg.objective import UniMRG

__all__ = ["UniMRG"]
