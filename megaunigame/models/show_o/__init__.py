"""The Show-o family: one language model that reads text and codes, and draws all codes of a picture in a few passes."""

from megaunigame.models.show_o.model import ShowO
from megaunigame.models.show_o.processor import ShowOProcessor
from megaunigame.models.show_o.vq import Magvit

__all__ = ["Magvit", "ShowO", "ShowOProcessor"]
