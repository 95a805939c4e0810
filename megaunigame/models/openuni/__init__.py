"""The OpenUni family: InternVL to understand, meta queries and a SANA diffusion transformer to generate."""

from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.models.openuni.model import OpenUni
from megaunigame.models.openuni.processor import OpenUniProcessor

__all__ = ["Flow", "OpenUni", "OpenUniConfig", "OpenUniProcessor"]
