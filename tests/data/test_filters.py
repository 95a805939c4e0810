from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from megaunigame.config import StreamConfig
from megaunigame.data.shards.table import read_table
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import ConfigError, DataError
from tests.data.shard_files import sample_fields, write_shards

SIZES = [9, 4, 11, 6]
EVERYTHING = range(sum(SIZES))


def fields(number: int) -> dict[str, bytes]:
    """Every third sample has no image, every fourth no depth."""
    made = sample_fields(number)
    gone = {"png"} if number % 3 == 0 else set()
    gone |= {"depth.png"} if number % 4 == 0 else set()
    return {name: data for name, data in made.items() if name not in gone}


def columns(number: int) -> dict[str, float]:
    """`clip` grows from 0 to .29; every fifth sample has no `width`."""
    return {"clip": number / 100, **({"width": 256 + number % 2} if number % 5 else {})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, fields, columns=columns)


def visited(folder, where: list[str], epochs: int = 1) -> list[int]:
    source = open_stream("s", StreamConfig(str(folder), window=2, where=where), 0).source
    return [int(source.find(p, 0).key) for p in range(epochs * source.order.samples)]


def test_columns_of_a_table(folder):
    table = read_table(folder / "data-000001.tar")
    assert sorted(table.columns) == ["clip", "width"]
    assert table.columns["clip"].tolist() == [0.09, 0.1, 0.11, 0.12]
    assert table.columns["width"].dtype == np.float64
    np.testing.assert_array_equal(table.columns["width"], [257, np.nan, 257, 256])


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        (["clip >= 0.07"], lambda n: n >= 7),
        (["clip>0.07", " clip < 2e-1 "], lambda n: 7 < n < 20),
        (["clip <= 0.07"], lambda n: n <= 7),
        (["width == 257"], lambda n: n % 5 and n % 2),
        (["width != 257"], lambda n: n % 5 and not n % 2),
        (["has depth.png"], lambda n: n % 4),
        (["has image", "clip >= 0.2"], lambda n: n % 3 and n >= 20),
    ],
)
def test_exactly_what_passes_is_visited_once_per_epoch(folder, where, passes):
    wanted = [n for n in EVERYTHING if passes(n)]
    seen = visited(folder, where, epochs=2)
    assert sorted(seen[: len(wanted)]) == sorted(seen[len(wanted) :]) == wanted
    assert seen[: len(wanted)] != seen[len(wanted) :]


def test_the_sample_read_is_the_one_named(folder):
    source = open_stream("s", StreamConfig(str(folder), where=["has image", "clip > 0.05"]), 0).source
    for position in range(source.order.samples):
        for attempt in (0, 1, 8):  # substitutes pass the filters too
            found = pickle.loads(pickle.dumps(source)).find(position, attempt)
            number = int(found.key)
            assert json.loads(found.read()["json"])["number"] == number
            assert number % 3 and number > 5


@pytest.mark.parametrize(
    "text", ["clip", "clip >=", "clip => 3", "clip > x", "clip > nan", "0.3 < clip", "has", "has a b", "a > 1 and b < 2", ""]
)
def test_what_is_not_a_filter(folder, text):
    with pytest.raises(ConfigError, match=r"data\.s: .* is not a filter.*'has depth.png'"):
        visited(folder, [text])


def test_names_no_sample_has(folder, tmp_path):
    with pytest.raises(DataError, match="no sample has the column of the filter 'clap > 3'. Columns: clip, width"):
        visited(folder, ["clap > 3"])
    with pytest.raises(DataError, match="'has depth'. Fields: image, depth.png, json, png, seg.png"):
        visited(folder, ["has depth"])
    without_columns = write_shards(tmp_path, [3], index=False, manifest=False)
    with pytest.raises(DataError, match="Columns: none; data_prep"):
        visited(without_columns, ["clip > 0"])
    assert sorted(visited(without_columns, ["has image"])) == [0, 1, 2]


def test_nothing_left(folder):
    with pytest.raises(DataError, match=r"none of 30 samples passes.*'clip > 0\.2' passes 9, 'clip < 0\.1' passes 10"):
        visited(folder, ["clip > 0.2", "clip < 0.1"])


def test_filters_are_part_of_the_cursor(folder):
    where = ["clip >= 0.07"]
    cursor = open_stream("s", StreamConfig(str(folder), where=where), 0).cursor
    open_stream("s", StreamConfig(str(folder), where=["clip>=7e-2"]), 0, cursor)
    for other, words in (["clip >= 0.08"], "where clip >= 0.07, this run has clip >= 0.08"), ([], "this run has not set"):
        with pytest.raises(DataError, match=f"'s'.*{words}.*resume=never"):
            open_stream("s", StreamConfig(str(folder), where=other), 0, cursor)


def test_another_rule_of_the_same_words(folder, tmp_path):
    """Columns do not enter the hash of tars without a manifest; what they select enters the cursor."""
    one = write_shards(tmp_path / "one", SIZES, fields, manifest=False, columns=columns)
    other = write_shards(tmp_path / "other", SIZES, fields, manifest=False, columns=lambda n: {"clip": (n + 1) / 100})
    cursor = open_stream("s", StreamConfig(str(one), where=["clip > 0.1"]), 0).cursor
    with pytest.raises(DataError, match="samples that pass"):
        open_stream("s", StreamConfig(str(other), where=["clip > 0.1"]), 0, cursor)
