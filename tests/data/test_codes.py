"""The field of stored codes: small, exact, and refused when it is not what it says."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import strategies as st

from megaunigame.data.codes import UnreadCodes, read_codes, write_codes
from megaunigame.data.decode import CODES_FIELD, decode_sample
from megaunigame.errors import DataError
from megaunigame.step.codes import PictureCodes
from tests.data.shard_files import encoded

PICTURE = encoded(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8))


def codes_of(codebook: int) -> PictureCodes:
    grid = torch.arange(2 * 2 * 3).view(2, 2, 3) + codebook - 12
    return PictureCodes("ab" * 32, codebook, {("crop", 24): grid, ("fit", 16): grid[:, :1, :2]})


@pytest.mark.parametrize(("codebook", "width"), [(48, 2), (65_536, 2), (65_537, 4), (131_072, 4)])
def test_what_is_written_is_read(codebook, width):
    written = codes_of(codebook)
    data = write_codes(written)
    assert len(data.partition(b"\n")[2]) == width * (12 + 4) and data == write_codes(written)
    read = read_codes("a", CODES_FIELD, data)
    assert (read.tokenizer, read.codebook, list(read.grids)) == (written.tokenizer, codebook, list(written.grids))
    for square, grid in written.grids.items():
        assert read.grids[square].dtype == torch.int64 and torch.equal(read.grids[square], grid)
    assert read.made_for == "crop at 24 pixels, fit at 16 pixels"


def field(header: object, codes: object = (), kind: str = "<u2") -> bytes:
    return json.dumps(header).encode() + b"\n" + np.array(codes, kind).tobytes()


def header(*grids: list, codebook: object = 48) -> dict:
    return {"codebook": codebook, "tokenizer": "ab", "grids": list(grids)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"\xff" * 40, "40 bytes.*UnicodeDecodeError"),
        (field(["crop", 24, 1, 1, 1], [3]), "TypeError"),
        (field({"codebook": 48, "grids": []}), "KeyError: 'tokenizer'"),
        (field(header(["crop", 24, 1, 1, 1], codebook="many"), [3]), "many"),
        (field(header(codebook=float("inf"))), "OverflowError"),
        (b"[" * 60_000, "nested too deeply"),
        (b"[" * 200_000, "more than the 65,536 bytes"),
        (field(header(["crop", float("nan"), 1, 1, 1]), [3]), "ValueError"),
        (field(header()), r"has the grids \[\] of 48 codes"),
        (field(header(["middle", 24, 1, 1, 1]), [3]), "'middle', 24"),
        (field(header(["crop", 24, 1, 1]), [3]), "wanted is GEOMETRY"),
        (field(header(["crop", 24, 1, -1, -1]), [3]), "wanted is GEOMETRY"),
        (field(header(["crop", 24, 1, 1, 1], codebook=0), [3]), "of 0 codes"),
        (field(header(["crop", 24, 1, 1, 2]), [3]), "has 2 bytes of codes"),
        (field(header(["crop", 24, 1, 1, 1]), [3, 4]), "has 4 bytes of codes"),
        (field(header(["crop", 24, 1, 1, 1]), [3], "<u4"), "has 4 bytes of codes"),
        (field(header(["crop", 24, 1, 1, 2]), [3, 48]), "has the code 48, and its codebook ends at 47"),
        (field(header(["crop", 24, 1, 1, 1], ["fit", 24, 2, 1, 1]), [1, 2, 3]), "each must have all pictures"),
    ],
)
def test_a_damaged_field_is_refused(data, message):
    with pytest.raises(DataError, match=f"(?s)Sample 'a': field 'codes.bin'.*{message}.*annotate --tasks codes"):
        read_codes("a", CODES_FIELD, data)


def test_only_the_own_picture_of_a_sample_has_its_codes():
    fields = {"json": json.dumps({"caption": "a"}).encode(), "png": PICTURE, CODES_FIELD: write_codes(codes_of(48))}
    sample = decode_sample("a", fields)
    assert sample.codes_of(sample.image) is sample.stored_codes is not None
    assert sample.codes is sample.codes_of(sample.image).read() and isinstance(sample.codes, PictureCodes)
    assert sample.codes_of(sample.image.clone()) is None and sample.codes_of(None) is None
    plain = decode_sample("b", {name: fields[name] for name in ("json", "png")})
    assert plain.codes is plain.stored_codes is None and plain.codes_of(plain.image) is None
    text = decode_sample("c", {name: fields[name] for name in ("json", CODES_FIELD)})
    assert text.codes_of(text.image) is None


NUMBERS = st.integers(-2, 4) | st.integers() | st.floats() | st.none() | st.booleans()
SOME = NUMBERS | st.text(max_size=3) | st.sampled_from(["crop", "fit"])
GRIDS = st.lists(st.lists(SOME, max_size=6) | st.tuples(st.sampled_from(["crop", "fit"]), *[NUMBERS] * 4) | SOME, max_size=2)
HEADERS = st.fixed_dictionaries({}, optional={"codebook": SOME, "tokenizer": SOME, "grids": GRIDS | SOME}) | SOME


@for_all(header=HEADERS, codes=st.binary(max_size=24))
def test_any_header_is_read_or_refused(header, codes):
    try:
        read = read_codes("a", CODES_FIELD, json.dumps(header).encode() + b"\n" + codes)
    except DataError:
        return
    assert all(0 <= grid.min() and grid.max() < read.codebook and grid.ndim == 3 for grid in read.grids.values())


def test_rows_with_codes_can_be_sent_to_another_process():
    given = UnreadCodes("a", CODES_FIELD, write_codes(codes_of(48)))
    assert pickle.loads(pickle.dumps(given)).read().grids.keys() == given.read().grids.keys()
    with pytest.raises(DataError):
        pickle.loads(pickle.dumps(UnreadCodes("a", CODES_FIELD, b"x"))).read()


def test_a_damaged_field_is_found_when_it_is_used():
    sample = decode_sample("a", {"json": b"{}", "png": PICTURE, CODES_FIELD: b"x"})
    given = sample.codes_of(sample.image)
    for use in (lambda: sample.codes, given.read, given.read, sample.decoded):
        with pytest.raises(DataError, match="Sample 'a': field 'codes.bin'"):
            use()
