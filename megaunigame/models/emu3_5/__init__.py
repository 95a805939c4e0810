"""The Emu3.5 family: Emu3's way to draw, with a language model of Qwen3's layout and a larger codebook."""

from megaunigame.models.emu3_5.model import Emu3p5
from megaunigame.models.emu3_5.processor import Emu3p5Processor
from megaunigame.models.emu3_5.vq import VisionTokenizer

__all__ = ["Emu3p5", "Emu3p5Processor", "VisionTokenizer"]
