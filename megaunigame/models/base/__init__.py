"""Interface of a family of unified multimodal models."""

from megaunigame.models.base.model import DecodedPictures, Generators, UnifiedModel, clamped, evaluating, leavable, rehearsing
from megaunigame.models.base.processor import Processor
from megaunigame.models.base.weights import Weights

__all__ = [
    "DecodedPictures",
    "Generators",
    "Processor",
    "UnifiedModel",
    "Weights",
    "clamped",
    "evaluating",
    "leavable",
    "rehearsing",
]
