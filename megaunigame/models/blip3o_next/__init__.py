"""The BLIP3o-NEXT family: a language model plans a picture in codes, and SANA draws it under the condition of its states."""

from megaunigame.models.blip3o_next.configuration import Blip3oNextConfig
from megaunigame.models.blip3o_next.model import Blip3oNext
from megaunigame.models.blip3o_next.processor import Blip3oNextProcessor

__all__ = ["Blip3oNext", "Blip3oNextConfig", "Blip3oNextProcessor"]
