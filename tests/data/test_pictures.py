"""Pictures are read as a viewer shows them, whatever their container; what cannot be read is refused, not fatal."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from megaunigame.errors import ConfigError
from megaunigame.pictures import pillow
from megaunigame.pictures.header import header_of
from megaunigame.pictures.pillow import changes_of, rgb_image
from megaunigame.pictures.reading import read_picture
from megaunigame.pictures.rules import DEFAULT_RULES, GROUNDS, PictureError, PictureRules, ground_from
from tests.data.picture_files import FORMS, HEIGHT, REFUSED, RGB, WIDTH, every_container, file_of, photo, png, tagged

WIDE = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 290 + 1000).astype(np.uint16)


def read(data: bytes, rules: PictureRules = DEFAULT_RULES) -> np.ndarray:
    """uint8 (H, W, 3)."""
    pixels = read_picture(data, rules)
    assert pixels.shape[0] == 3
    return pixels.permute(1, 2, 0).numpy()


# --- what is plain is read as it is


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        *((file_of(photo(mode), "PNG"), "RGB") for mode in ("RGB", "L", "P", "1")),
        *((file_of(photo().quantize(colors), "PNG"), "RGB") for colors in (2, 3, 16)),
        *((file_of(photo(mode), "JPEG"), "RGB") for mode in ("RGB", "L", "CMYK")),
        (file_of(photo(), "JPEG", progressive=True, exif=tagged(1)), "RGB"),
        (file_of(photo(), "WEBP"), "RGB"),
        (file_of(photo(), "WEBP", lossless=True, exif=tagged(1)), "RGB"),
    ],
)
def test_plain_pictures_are_those_of_pillow(data, mode):
    assert header_of(data).plain and changes_of(data, DEFAULT_RULES) == []
    np.testing.assert_array_equal(read(data), np.array(rgb_image(data, DEFAULT_RULES)))


@pytest.mark.parametrize("form", FORMS)
def test_every_container_is_found_by_its_content(form):
    data = every_container()[f"{form} RGB"]
    if form in ("BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(read(data), RGB)
    assert read(data).ndim == 3


@pytest.mark.parametrize("form", REFUSED)
def test_other_containers_are_refused(form):
    data = file_of(photo("1" if form in ("MSP", "XBM") else "F" if form == "SPIDER" else "RGB"), form)
    with pytest.raises(PictureError, match="^not an image in AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP$"):
        read(data)


def test_a_pillow_without_a_container_opens_the_others(monkeypatch):
    """AVIF came with Pillow 11.2."""
    monkeypatch.delitem(Image.OPEN, "AVIF")
    pillow.known_containers.cache_clear()
    try:
        assert read(file_of(photo(), "PNG")).ndim == 3
        with pytest.raises(PictureError, match="^not an image in BMP, GIF, "):
            read(b"no picture")
    finally:
        pillow.known_containers.cache_clear()


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_tagged_picture_is_turned(form, orientation):
    data = file_of(photo(), form, exif=tagged(orientation), **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(read(data), np.array(expected))
    if form != "TIFF":  # Pillow itself turns these
        assert changes_of(data, DEFAULT_RULES) == (["turned"] if orientation > 1 else [])
    assert read(data).shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("xmp", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
def test_an_orientation_in_xmp_counts(form, xmp):
    if form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        data = file_of(photo(), form, pnginfo=text)
    else:
        data = file_of(photo(), form, xmp=xmp.encode())
    assert read(data).shape == (WIDTH, HEIGHT, 3)


# --- transparency


TRANSPARENT = {
    "PNG RGBA": lambda: file_of(photo("RGBA"), "PNG"),
    "PNG LA": lambda: file_of(photo("LA"), "PNG"),
    "PNG RGBA of 16 bits": lambda: png(np.array(photo("RGBA")).astype(np.uint16) * 257, 6, 16),
    "WEBP": lambda: file_of(photo("RGBA"), "WEBP", lossless=True, exact=True),
    "TIFF": lambda: file_of(photo("RGBA"), "TIFF"),
    "JPEG2000": lambda: file_of(photo("RGBA"), "JPEG2000"),
}


@pytest.mark.parametrize("ground", ["white", "black", "#102030"])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pictures_lie_on_the_ground(name, ground):
    color = np.array(ground_from("ground", ground))
    source = np.array(photo("LA" if "LA" in name else "RGBA").convert("RGBA")).astype(float)
    shown, alpha = source[:, :, :3], source[:, :, 3:] / 255
    got = read(TRANSPARENT[name](), PictureRules(ground=tuple(color.tolist())))
    np.testing.assert_allclose(got, shown * alpha + color * (1 - alpha), atol=1.01)
    assert (got[:4] == color).all()  # what is hidden below alpha 0 does not show
    np.testing.assert_array_equal(got[4:8], shown[4:8])


KEYED = {
    "RGB of 8 bits": (2, 8, np.uint8, lambda key: key.astype(">u2").tobytes()),
    "grey of 8 bits": (0, 8, np.uint8, lambda key: key[:1].astype(">u2").tobytes()),
    "RGB of 16 bits": (2, 16, np.uint16, lambda key: key.astype(">u2").tobytes()),
    "grey of 16 bits": (0, 16, np.uint16, lambda key: key[:1].astype(">u2").tobytes()),
    "grey of 4 bits": (0, 4, np.uint8, lambda key: key[:1].astype(">u2").tobytes()),
    "grey of 1 bit": (0, 1, np.uint8, lambda key: key[:1].astype(">u2").tobytes()),
}


@pytest.mark.parametrize("name", KEYED)
def test_a_transparent_color_of_a_png_is_the_ground(name):
    kind, bits, dtype, key_of = KEYED[name]
    values = np.random.default_rng(1).integers(0, 2**bits, (HEIGHT, WIDTH, 3) if kind == 2 else (HEIGHT, WIDTH), dtype=dtype)
    key = np.atleast_1d(values[0, 0])
    values[3] = values[0, 0]
    got = read(png(values, kind, bits, key_of(key)), PictureRules(ground=(1, 2, 3)))
    keyed = (values.reshape(HEIGHT, WIDTH, -1) == key).all(-1)
    assert (got[keyed] == (1, 2, 3)).all() and not (got[~keyed] == (1, 2, 3)).all(-1).any()


@pytest.mark.parametrize("form", ["PNG", "GIF"])
@pytest.mark.parametrize("colors", [4, 200])
def test_a_palette_with_transparency(form, colors):
    image = photo().quantize(colors)
    ids = np.array(image)
    got = read(file_of(image, form, transparency=1))
    stored = np.array(image.convert("RGB"))
    assert (got[ids == 1] == 255).all() and (ids == 1).any()
    np.testing.assert_array_equal(got[ids != 1], stored[ids != 1])


@pytest.mark.parametrize("text", ["White", "#fff", "#12345", "", "red", "0xffffff"])
def test_a_ground_that_is_none(text):
    with pytest.raises(ConfigError, match="data.x.ground must be white, black, gray or a color"):
        ground_from("data.x.ground", text)


def test_grounds_by_name():
    assert {name: ground_from("k", name) for name in GROUNDS} == GROUNDS and ground_from("k", "#0aFf10") == (10, 255, 16)


# --- more than 8 bits


def test_16_bits_are_read_alike_from_every_container():
    image = Image.fromarray(WIDE)
    swapped = Image.frombytes("I;16B", image.size, WIDE.astype(">u2").tobytes())
    pgm = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + WIDE.astype(">u2").tobytes()
    colored = png(np.stack([WIDE] * 3, -1), 2, 16)
    made = [png(WIDE, 0, 16), pgm, colored, file_of(image, "JPEG2000"), file_of(swapped, "TIFF")]
    made += [file_of(image, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_deflate")]
    for data in made:
        np.testing.assert_array_equal(read(data), np.stack([WIDE >> 8] * 3, -1).astype(np.uint8))


def test_white_is_zero_where_the_tiff_says_so():
    data = file_of(Image.fromarray(WIDE), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(read(data)[:, :, 0], 255 - (WIDE >> 8))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 70_000], [140_000, 35_000]], np.int32), [[0, 128], [255, 64]]),
        (np.array([[-5, 5], [0, 5]], np.int32), [[0, 255], [128, 255]]),
        (np.array([[-(2**31), 2**31 - 1]], np.int32), [[0, 255]]),
        (np.array([[7, 7]], np.int32), [[0, 0]]),
        (np.array([[0.0, 0.5], [1.0, 0.25]], np.float32), [[0, 128], [255, 64]]),
        (np.array([[0.2, 0.4]], np.float32), [[51, 102]]),
        (np.array([[-1.0, 1.0]], np.float32), [[0, 255]]),
        (np.array([[-3e38, 3e38, 0]], np.float32), [[0, 255, 128]]),
        (np.array([[100, 300, 200]], np.float32), [[0, 255, 128]]),
    ],
)
def test_greys_of_32_bits_are_scaled(values, expected):
    np.testing.assert_allclose(read(file_of(Image.fromarray(values), "TIFF"))[:, :, 0], expected, atol=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad):
    with pytest.raises(PictureError, match="NaN or infinite"):
        read(file_of(Image.fromarray(np.array([[0.5, bad]], np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "1", "YCbCr", "P", "L"])
def test_other_colors_of_tiff_are_those_of_pillow(mode):
    image = photo().convert("LAB") if mode == "LAB" else photo(mode)
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:  # it cannot read what it writes
        with pytest.raises(PictureError, match="damaged image: image file is truncated"):
            read(file_of(image, "TIFF"))
        return
    got = read(file_of(image, "TIFF"))
    np.testing.assert_allclose(got, np.array(image.convert("RGB")), atol=3 if mode == "YCbCr" else 0)


# --- animations


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_of_an_animation_the_first_frame_is_read(form):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "lime", "blue")]
    data = file_of(frames[0], form, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read(data), np.array(frames[0]), atol=3)


# --- limits and damage


@pytest.mark.parametrize("name", sorted(every_container()))
def test_the_limit_of_pixels(name):
    with pytest.raises(PictureError, match="max_pixels allows"):
        read(every_container()[name], PictureRules(max_pixels=100))


def test_a_limit_above_that_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read(every_container()["TIFF RGB"]).shape == RGB.shape


BOMBS = """
import resource, sys
from megaunigame.data.decode import decode_sample
from megaunigame.errors import DataError
from tests.data.picture_files import BOMBS
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in BOMBS.items():
    for field in ("jpg", "depth.png", "seg.png") if name == "PNG" else ("jpg",):
        try:
            decode_sample("k", {"json": b"{}", field: data}).decoded()
            sys.exit(f"{name} as {field} was read")
        except DataError as error:
            assert "max_pixels allows" in str(error), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_bomb_takes_no_memory():
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100  # MiB


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damage_is_refused_or_survived(data):
    name = data.draw(st.sampled_from(sorted(every_container())))
    damaged = bytearray(every_container()[name])
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=8)):
        damaged[place] = byte
    del damaged[data.draw(st.integers(0, 2 * len(damaged))) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(bytes(damaged), PictureRules(max_pixels=10**6))
        except PictureError as error:
            assert str(error)


@pytest.mark.parametrize("seed", range(60))
def test_a_png_with_wrong_bytes_among_its_pixels_does_not_end_the_process(seed):
    rng = np.random.default_rng(seed)
    damaged = bytearray(png(rng.integers(0, 256, (HEIGHT, WIDTH, 3)), 2, 8))
    damaged[rng.integers(41, len(damaged) - 20)] ^= 1 << rng.integers(8)
    try:
        read(bytes(damaged))
    except PictureError:
        pass


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_no_picture(data):
    with pytest.raises(PictureError):
        read(data)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_heic_is_named(brand):
    """What phones write: Pillow alone cannot read it, and "not an image" would not help."""
    header = b"\x00\x00\x00\x18ftyp" + brand + b"\x00\x00\x00\x00" + brand + b"heic" + bytes(64)
    with pytest.raises(PictureError, match="HEIC picture, which Pillow alone cannot read: convert it"):
        read_picture(header, PictureRules())
    with pytest.raises(PictureError, match="^not an image in AVIF, "):
        read_picture(b"\x00\x00\x00\x18moov" + bytes(80), PictureRules())
