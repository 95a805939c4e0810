"""What `pack` stores of odd pictures, what `annotate` sees, what `verify` says, and what training reads."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data as photographs

from data_prep.__main__ import main
from data_prep.inputs.sample import EntryFailure, packed
from data_prep.inputs.stored_picture import stored_picture
from data_prep.shard_writer import Job, Shard
from megaunigame.config import StreamConfig
from megaunigame.data.decode import decode_sample
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import ConfigError
from megaunigame.pictures.rules import DEFAULT_RULES, PictureError, PictureRules
from megaunigame.pixels import psnr
from tests.data.picture_files import BOMBS, RGB, every_container, file_of, photo, png, tagged
from tests.data.shard_files import number_batches, talk, write_tar
from tests.data.test_stream import PLAN
from tests.data_prep.stored import failures_of, records_of, samples_of, write_whole
from tests.data_prep.toy_sets import TALK


def pack_files(folder: Path, files: dict[str, bytes], *options: str) -> int:
    """Pack pictures, by file name, as a LLaVA JSON into `folder`/out."""
    (folder / "images").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "images" / name).write_bytes(content)
    entries = [{"id": name, "image": name, "conversations": TALK} for name in files]
    (folder / "data.json").write_text(json.dumps(entries))
    command = ["pack", "--format", "llava-json", "--json", str(folder / "data.json"), "--image-root", str(folder / "images")]
    return main([*command, "--out", str(folder / "out"), *options])


def read(fields: dict[str, bytes], rules: PictureRules = DEFAULT_RULES) -> np.ndarray:
    """(H, W, 3), as training reads it."""
    image = decode_sample("k", {"json": b"{}", **fields}, rules).image
    assert image is not None
    return image.permute(1, 2, 0).numpy()


# --- what is stored


@pytest.mark.parametrize("name", sorted(every_container()))
def test_what_is_stored_is_opaque_upright_and_read_as_the_source(name):
    source = every_container()[name]
    ending, content, (width, height) = stored_picture(source, DEFAULT_RULES)
    stored = read({ending: content})
    assert stored.shape == (height, width, 3)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format in ("JPEG", "PNG", "WEBP") and image.size == (width, height)
        assert not image.has_transparency_data and 0x0112 not in image.getexif()
    if not name.startswith("JPEG "):  # turned: encoded again
        np.testing.assert_array_equal(stored, read({"png": source}))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_plain_files_are_stored_byte_for_byte(form):
    content = file_of(photo(), form, exif=tagged(1))
    assert stored_picture(content, DEFAULT_RULES)[1] == content


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize(("size", "least"), [((512, 512), 48), ((503, 401), 47)])
@pytest.mark.parametrize("options", [{"quality": 75}, {"quality": 92, "subsampling": 0}, {"subsampling": 1}])
def test_a_turned_jpeg_stays_a_jpeg_close_to_the_source(orientation, size, least, options):
    photograph = Image.fromarray(photographs.astronaut()).crop((0, 0, *size))
    source = file_of(photograph, "JPEG", exif=tagged(orientation), **options)
    ending, content, stored_size = stored_picture(source, DEFAULT_RULES)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(source)))
    assert ending == "jpg" and stored_size == upright.size
    got, expected = (decode_sample("k", {"json": b"{}", "jpg": file}).image for file in (content, source))
    np.testing.assert_allclose(expected.permute(1, 2, 0), np.array(upright), atol=1)
    assert psnr(got[None] / 127.5 - 1, expected[None] / 127.5 - 1).item() > least


def test_a_turned_grey_jpeg_and_a_turned_cmyk_jpeg():
    grey = stored_picture(file_of(photo("L"), "JPEG", exif=tagged(8)), DEFAULT_RULES)
    cmyk = stored_picture(file_of(photo("CMYK"), "JPEG", exif=tagged(8)), DEFAULT_RULES)
    assert (grey[0], grey[2]) == ("jpg", RGB.shape[:2]) and (cmyk[0], cmyk[2]) == ("png", RGB.shape[:2])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_of_damaged_pictures_what_pack_takes_training_reads(data):
    name = data.draw(st.sampled_from(sorted(every_container())))
    damaged = bytearray(every_container()[name])
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=3)):
        damaged[place] = byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ending, content, (width, height) = stored_picture(bytes(damaged), PictureRules(max_pixels=10**6))
        except PictureError:
            return
        assert read({ending: content}).shape == (height, width, 3)


# --- pack, verify


def test_a_phone_photo_a_logo_and_a_grey_scan(tmp_path, capsys):
    wide = np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 270
    files = {
        "phone.jpg": file_of(photo(), "JPEG", exif=tagged(6)),
        "logo.png": file_of(photo("RGBA"), "PNG"),
        "scan.tif": file_of(Image.fromarray(wide), "TIFF"),
        "avif called.jpg": file_of(photo(), "AVIF"),
    }
    assert pack_files(tmp_path, files) == 0
    phone, logo, scan, avif = samples_of(tmp_path / "out").values()
    height, width = RGB.shape[:2]
    assert [(r["width"], r["height"]) for r in records_of(tmp_path / "out")] == [
        *((height, width), (width, height), (20, 12), (width, height))
    ]
    assert read(phone).shape == (width, height, 3)
    assert (read(logo)[:4] == 255).all()
    np.testing.assert_array_equal(read(scan)[:, :, 0], wide >> 8)
    np.testing.assert_array_equal(read(avif), read({"avif": files["avif called.jpg"]}))
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "turn" not in capsys.readouterr().out


def test_the_ground_of_pack(tmp_path, capsys):
    files = {"logo.png": file_of(photo("RGBA"), "PNG")}
    assert pack_files(tmp_path, files, "--ground", "#0a141e") == 0
    assert (read(samples_of(tmp_path / "out")["00000000-logo_png"])[:4] == (10, 20, 30)).all()
    assert pack_files(tmp_path, files) == 2 and "written with other settings" in capsys.readouterr().err
    assert pack_files(tmp_path, files, "--ground", "blue", "--overwrite") == 2
    assert "--ground must be white, black, gray or a color" in capsys.readouterr().err


def test_bombs_and_damage_are_failures_with_a_reason(tmp_path):
    broken = bytearray(png(RGB, 2, 8))
    broken[100] ^= 255
    files = {f"{name}.bin": content for name, content in BOMBS.items()}
    files |= {
        "broken.png": bytes(broken),
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "good.png": png(RGB, 2, 8),
    }
    assert pack_files(tmp_path, files, "--max-failed-fraction", "0.9") == 0
    reasons = {failure["image"]: failure["reason"] for failure in failures_of(tmp_path / "out")}
    assert set(reasons) == set(files) - {"good.png"}
    assert all("64,000,000 that max_pixels allows" in reasons[f"{name}.bin"] for name in BOMBS)
    assert reasons["broken.png"].startswith("damaged image") and reasons["eps.jpg"].startswith("not an image in AVIF, BMP, ")


def test_the_limit_of_pack_and_of_verify(tmp_path, capsys):
    files = {"a.png": png(RGB, 2, 8), "b.png": png(RGB[:4], 2, 8)}
    assert pack_files(tmp_path, files, "--max-pixels", "100", "--max-failed-fraction", "0.5") == 0
    assert [failure["reason"] for failure in failures_of(tmp_path / "out")] == [
        "17 x 13 = 221 pixels, more than the 100 that max_pixels allows"
    ]
    assert main(["verify", str(tmp_path / "out"), "--max-pixels", "60"]) == 1
    assert "17 x 4 = 68 pixels, more than the 60 that max_pixels allows" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out"), "--max-pixels", "0"]) == 2


def test_verify_says_what_reading_changes_and_which_maps_do_not_fit(tmp_path, capsys):
    """Shards of other tools, or of this one before it turned pictures."""
    seg = file_of(photo("L"), "PNG")
    meta = json.dumps({"caption": "x"}).encode()
    samples = [
        {"__key__": "a", "jpg": file_of(photo(), "JPEG", exif=tagged(3)), "json": meta, "seg.png": seg},
        {"__key__": "b", "png": file_of(photo("RGBA"), "PNG"), "json": meta},
    ]
    lying = {"__key__": "c", "jpg": file_of(photo(), "JPEG", exif=tagged(6)), "json": meta, "seg.png": seg}
    for name, held in (("good", samples), ("bad", [lying])):
        write_whole(Job(tmp_path / name, "x", {}, 1, lambda number, held=held: Shard(iter(held), [])))
    assert main(["verify", str(tmp_path / "good")]) == 0
    said = capsys.readouterr().out
    assert "1 pictures have an orientation tag" in said and "1 pictures have a transparent color or channel" in said
    assert main(["verify", str(tmp_path / "bad")]) == 1
    assert "segmentation is 17 x 13, the picture 13 x 17: another shape" in capsys.readouterr().out


# --- annotate


def test_maps_are_made_from_the_upright_picture(tmp_path):
    meta = json.dumps({"caption": "x"}).encode()
    write_tar(tmp_path / "in" / "a-000000.tar", [("k.jpg", file_of(photo(), "JPEG", exif=tagged(6))), ("k.json", meta)])
    command = ["annotate", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--tasks", "segmentation"]
    assert main([*command, "--segmentation-teacher", "classic", "--device", "cpu"]) == 0
    sample = decode_sample("k", samples_of(tmp_path / "out")["k"])
    assert sample.picture("segmentation").shape == sample.image.shape[1:] == (RGB.shape[1], RGB.shape[0])


# --- training


class Seen:
    """An objective that keeps the pictures it is given."""

    def __init__(self):
        self.images: list[np.ndarray] = []

    def row(self, request, sample, rng):
        self.images.append(sample.image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("backend", ["index", "webdataset"])
def test_both_readers_of_training_turn_flatten_and_limit(tmp_path, backend):
    turned, logo = file_of(photo(), "JPEG", exif=tagged(6)), file_of(photo("RGBA"), "PNG")
    members = []
    for key, field, content in (
        ("a", "jpg", turned),
        ("b", "png", logo),
        ("c", "gif", file_of(photo(), "GIF")),
        ("d", "png", BOMBS["PNG"]),
    ):
        members += [(f"{key}.json", json.dumps({"conversations": talk(("q", "a"))}).encode()), (f"{key}.{field}", content)]
    write_tar(tmp_path / "x-000000.tar", members)
    config = StreamConfig(str(tmp_path / "x-000000.tar"), backend=backend, ground="#010203", shuffle_buffer=2)
    seen = Seen()
    streams = {name: open_stream(name, config, 3) for name in ("scenes", "chat")}
    dataset: MicroBatches = number_batches(PLAN, streams, seen)
    bad = {sample.reason for batch in (dataset[n] for n in range(20)) for sample in batch.bad}
    assert len(bad) == 1 and "60000 x 60000" in bad.pop()
    shapes = {image.shape for image in seen.images}
    assert shapes == {(13, 17, 3), (17, 13, 3)}
    assert any((image[:4] == (1, 2, 3)).all() for image in seen.images if image.shape == (13, 17, 3))


def test_settings_of_a_stream_that_are_not_legal(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.s\.ground must be white"):
        open_stream("s", StreamConfig(str(tmp_path), ground="pink"), 3)


# --- texts and names


def test_records_that_cannot_be_written():
    with pytest.raises(EntryFailure, match="not Unicode"):
        packed("k", {"caption": "\ud83d"}, None)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EntryFailure, match="nested too deeply"):
        packed("k", {"x": deep}, None)


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 300 + ".jpg", "\ud83d.jpg"])
def test_names_that_no_file_can_have_are_missing_files(tmp_path, name):
    good = {"good.png": png(RGB, 2, 8)}
    (tmp_path / "data.json").write_text("")
    assert pack_files(tmp_path, good) == 0
    entries = [{"id": n, "image": n, "conversations": TALK} for n in ("good.png", name)]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    command = [
        "pack",
        "--format",
        "llava-json",
        "--json",
        str(tmp_path / "data.json"),
        "--image-root",
        str(tmp_path / "images"),
    ]
    assert main([*command, "--out", str(tmp_path / "again"), "--max-failed-fraction", "0.5"]) == 0
    assert [failure["reason"] for failure in failures_of(tmp_path / "again")] == ["missing file"]


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not next to this checkout")
@pytest.mark.parametrize(
    ("case", "failed"),
    [
        ("odd_pictures", 0),
        ("transparent_logo", 0),
        ("banner", 0),
        ("avif_entry", 0),
        ("json_surrogate", 1),
        ("json_null_bytes", 0),
    ],
)
def test_a_case_is_packed(case, failed, tmp_path):
    command = ["pack", "--format", "llava-json", "--json", str(CASES / case / "data.json")]
    command += ["--image-root", str(CASES / case / "images"), "--out", str(tmp_path), "--max-failed-fraction", "1"]
    assert main(command) == 0
    assert len(failures_of(tmp_path)) == failed if failed else not (tmp_path / "failures.jsonl").exists()
    assert main(["verify", str(tmp_path)]) == 0
    if case in ("odd_pictures", "transparent_logo"):
        for key, fields in samples_of(tmp_path).items():
            assert 20 < read({k: v for k, v in fields.items() if k != "json"}).mean() < 254, key
