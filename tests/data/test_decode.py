from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from megaunigame.data.decode import DECODERS, Sample, decode_sample, meta_of
from megaunigame.errors import DataError
from tests.data.shard_files import encoded

META = {"json": json.dumps({"conversations": []}).encode()}
RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
DEPTH = np.random.default_rng(1).integers(0, 65536, (6, 10), dtype=np.uint16)


@pytest.mark.parametrize(
    ("field", "kind", "stored", "decoded"),
    [
        ("png", "image", RGB, RGB.transpose(2, 0, 1)),
        ("png", "image", RGB[:, :, 0], np.stack([RGB[:, :, 0]] * 3)),
        ("depth.png", "depth", DEPTH, DEPTH.astype(np.int32)),
    ],
    ids=["RGB", "gray becomes RGB", "depth of 16 bits"],
)
def test_lossless_pictures_are_kept(field, kind, stored, decoded):
    picture = decode_sample("k", {**META, field: encoded(stored)}).picture(kind)
    np.testing.assert_array_equal(picture.numpy(), decoded, strict=True)


@pytest.mark.parametrize(("field", "form"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_lossy_images_have_the_right_size(field, form):
    assert decode_sample("k", {**META, field: encoded(RGB, form)}).image.shape == (3, 6, 10)


@pytest.mark.parametrize("colors", [2, 4, 16, 17, 256])  # stored with 1, 2, 4, 8 and 8 bits a pixel
def test_palette_ids_are_kept(colors):
    ids = np.random.default_rng(2).integers(0, colors, (7, 9), dtype=np.uint8)
    data = encoded(ids, palette=colors)
    assert data[24] == {2: 1, 4: 2, 16: 4}.get(colors, 8)  # bit depth in the PNG header
    segmentation = decode_sample("k", {**META, "seg.png": data}).picture("segmentation")
    assert segmentation.dtype == torch.uint8
    assert np.array_equal(segmentation.numpy(), ids)


def test_text_only_sample_has_no_pictures():
    sample = decode_sample("k", dict(META))
    assert sample.meta == {"conversations": []} and sample.image is None
    assert sample.picture("depth") is None and sample.picture("segmentation") is None


@pytest.mark.parametrize(
    ("field", "data", "words"),
    [
        ("jpg", b"<html>404 not found</html>", "not a readable"),
        ("jpg", b"", "0 bytes"),
        ("png", encoded(RGB)[:60], "not a readable"),
        ("json", b"{'conversations': []}", "not JSON"),
        ("json", b"\x80\x04\x95", "not JSON"),
        ("json", b"[]", "JSON list"),
        ("depth.png", encoded(RGB[:, :, 0]), "mode L; legal is one channel of 16 bits"),
        ("depth.png", encoded(RGB), "mode RGB"),
        ("depth.png", b"nothing", "not a readable"),
        ("seg.png", encoded(RGB), "mode RGB"),
        ("seg.png", encoded(RGB[:, :, 0], "JPEG"), "not a readable PNG"),
        ("seg.png", encoded(RGB[:, :, 0], palette=256)[:-40], "not a readable PNG"),
    ],
)
def test_what_cannot_be_decoded_is_named(field, data, words):
    with pytest.raises(DataError, match=words) as error:
        decode_sample("sample-7", {**META, field: data}).decoded()
    assert "'sample-7'" in str(error.value) and repr(field) in str(error.value)


def test_sample_without_json():
    with pytest.raises(DataError, match=r"'json' is missing; the sample has \['png'\]"):
        decode_sample("k", {"png": encoded(RGB)})


def test_pictures_are_decoded_at_first_use():
    sample = decode_sample("k", {**META, "png": encoded(RGB), "depth.png": b"nothing", "seg.png": b"nothing"})
    assert sample.image is sample.image
    for _ in range(2):  # the second use fails like the first
        with pytest.raises(DataError, match="'depth.png'"):
            sample.picture("depth")
    with pytest.raises(DataError, match="'depth.png'"):
        sample.decoded()


def test_a_sample_of_tensors():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    sample = Sample("k", {}, image=image)
    assert sample.decoded() is sample and sample.image is image and sample.picture("depth") is None


def test_a_new_stored_target_is_one_line(monkeypatch):
    monkeypatch.setitem(DECODERS, "normals", (("normals.bin",), lambda key, field, data, rules: torch.tensor(list(data))))
    sample = decode_sample("k", {**META, "normals.bin": b"\x01\x02"}).decoded()
    assert sample.picture("normals").tolist() == [1, 2] and Sample("k", {}).picture("normals") is None
    with pytest.raises(TypeError, match="no picture normal; DECODERS has image, depth, segmentation, contours, normals"):
        Sample("k", {}, normal=None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"caption": "\\ud83d"}', "not Unicode"),
        (b'{"caption": "\\uD83D ?"}', "not Unicode"),
        (b'{"caption": "\xed\xa0\xbd"}', "not Unicode"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"x": ' + b"1" * 10_000 + b"}", "not JSON"),
    ],
)
def test_texts_that_are_none_are_bad_samples(text, words):
    with pytest.raises(DataError, match=f"Sample 'k': field 'json'.*{words}"):
        decode_sample("k", {"json": text})


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-32"])
def test_half_a_surrogate_pair_is_refused_in_every_coding(coding):
    text = '{"conversations": [{"from": "human", "value": "\ud800"}, {"from": "gpt", "value": "x"}]}'
    with pytest.raises(DataError, match="not Unicode"):
        meta_of("k", text.encode(coding, "surrogatepass"))


def test_a_pair_of_surrogates_is_a_character():
    assert decode_sample("k", {"json": b'{"caption": "\\ud83d\\ude00"}'}).meta == {"caption": "\U0001f600"}


@pytest.mark.parametrize("field", ["picture1.jpg", "picture2.png", "picture0.webp"])
def test_a_numbered_picture_without_a_first_one_is_refused(field):
    with pytest.raises(DataError, match=f"field '{field}' is there without a first picture"):
        decode_sample("k", {"json": b"{}", field: b"x"})
    assert decode_sample("k", {"json": b"{}", "picture2.txt": b"x"}).image_count == 0
