"""Surface normals as colors, stored by a teacher as `normals.png` next to the image."""

from megaunigame.data.decode import DECODERS, rgb_pixels
from megaunigame.representations.base import Representation

DECODERS["normals"] = (("normals.png",), rgb_pixels)


class Normals(Representation):
    needs = "normals.png"

    def picture(self, sample):
        return sample.picture("normals")
