"""The image, left and right exchanged."""

from megaunigame.representations.base import Representation


class Mirror(Representation):
    needs = ""

    def picture(self, sample):
        return None if sample.image is None else sample.image.flip(-1)
