"""The Emu3 family: one vocabulary for text and image codes, one language model for both."""

from megaunigame.models.emu3.model import Emu3
from megaunigame.models.emu3.processor import Emu3Processor
from megaunigame.models.emu3.vq import VisionTokenizer

__all__ = ["Emu3", "Emu3Processor", "VisionTokenizer"]
