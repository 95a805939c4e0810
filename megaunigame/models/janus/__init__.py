"""The Janus family: Janus, Janus-Pro 1B and 7B, and models of any size with the same layout."""

from megaunigame.models.janus.model import Janus
from megaunigame.models.janus.processor import JanusProcessor
from megaunigame.models.janus.vq import ImageTokenizer

__all__ = ["ImageTokenizer", "Janus", "JanusProcessor"]
