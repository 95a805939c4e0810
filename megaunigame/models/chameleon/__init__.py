"""The Chameleon family: one vocabulary for text and image codes, one language model for both."""

from megaunigame.models.chameleon.model import Chameleon
from megaunigame.models.chameleon.processor import ChameleonRows
from megaunigame.models.chameleon.vq import ImageTokenizer

__all__ = ["Chameleon", "ChameleonRows", "ImageTokenizer"]
