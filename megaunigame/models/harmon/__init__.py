"""The Harmon family: one masked autoencoder reads and draws pictures, a Qwen2 language model in its middle."""

from megaunigame.models.harmon.configuration import Drawing, HarmonConfig
from megaunigame.models.harmon.model import Harmon
from megaunigame.models.harmon.processor import HarmonProcessor

__all__ = ["Drawing", "Harmon", "HarmonConfig", "HarmonProcessor"]
