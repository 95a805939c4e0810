"""The BAGEL family: a language model with two sets of weights, one that reads and one that draws by flow matching."""

from megaunigame.models.bagel.configuration import BagelConfig, Flow
from megaunigame.models.bagel.model import Bagel
from megaunigame.models.bagel.processor import BagelProcessor

__all__ = ["Bagel", "BagelConfig", "BagelProcessor", "Flow"]
