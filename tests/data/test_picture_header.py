"""The quick look at a header calls upright only what Pillow finds upright."""

from __future__ import annotations

import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from megaunigame.pictures.header import turned_by_exif
from megaunigame.pictures.pillow import TURNS
from tests.data.picture_files import tagged


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=40), st.sampled_from([tagged(k).tobytes() for k in (1, 3, 6)]), st.integers(0, 60), st.integers(0, 255)
)
def test_what_the_quick_look_calls_upright_is_upright_for_pillow(tail, block, place, byte):
    exif = bytearray(block.removeprefix(b"Exif\0\0") + tail)
    if place < len(exif):
        exif[place] = byte
    if not turned_by_exif_or_short(bytes(exif)):
        found = Image.Exif()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.load(bytes(exif))
                orientation = found.get(0x0112)
        except Exception:  # Pillow cannot read it either: shown as stored
            return
        assert orientation not in TURNS


def turned_by_exif_or_short(exif: bytes) -> bool:
    try:
        return turned_by_exif(exif)
    except Exception as error:
        assert type(error).__name__ == "error"  # struct.error, which header_of expects
        return True
