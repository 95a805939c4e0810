"""Counts of tokens next to shards: they reach the positions they are of, and nothing else changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import fsspec
import numpy as np
import pytest

from megaunigame.config import CacheConfig, MixedConfig, StreamConfig
from megaunigame.data.decode import decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.token_counts import COLUMNS, NONE, counts_name
from megaunigame.data.sources.opening import estimated_lengths, open_stream
from megaunigame.errors import DataError
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.text.tokenizer_hash import tokenizer_hash
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from tests.data.shard_files import NumberCollator, NumberRows, number_batches, stored_cursors, write_shards
from tests.data.test_dealing import rows_of

SIZES, TOKENIZER = [5, 3, 6], NumberCollator.tokenizer_hash


def counts_of(number: int) -> tuple[int, int, int]:
    """Made up; every fourth sample has no conversation, every third no caption."""
    talk = (NONE, NONE) if number % 4 == 0 else (1000 + number, 1 + number % 3)
    return (*talk, NONE if number % 3 == 0 else 500 + number)


def write_counts(folder, sizes=SIZES, tokenizer=TOKENIZER) -> None:
    content = np.array([counts_of(number) for number in range(sum(sizes))], dtype="<i4").tobytes()
    (folder / counts_name(tokenizer)).write_bytes(content)
    list_counts(folder, {tokenizer: hashlib.sha256(content).hexdigest()})


def list_counts(folder, counts) -> None:
    about = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(about | {"token_counts": counts}))


@pytest.fixture
def plain(tmp_path):
    return write_shards(tmp_path / "plain", SIZES)


@pytest.fixture
def counted(tmp_path):
    folder = write_shards(tmp_path / "counted", SIZES)
    write_counts(folder)
    return folder


def test_counts_are_those_of_the_samples(plain, counted):
    """Read one by one, over windows and epochs, through a filter, and in a mix with a folder that has none."""
    configs = {
        "all": StreamConfig(str(counted), window=2),
        "filtered": StreamConfig(str(counted), window=1, where=["has png"]),
        "mixed": StreamConfig(mix={"a": MixedConfig(str(counted), weight=2), "b": MixedConfig(str(plain))}),
    }
    for kind, config in configs.items():
        source = open_stream("s", config, 3).source
        found, others = source.amounts(range(3, 40), TOKENIZER), source.amounts(range(3, 40), 16 * "b")
        assert np.isnan(others.conversation_tokens).all() and np.isnan(others.caption_tokens).all()
        known = 0
        for at, position in enumerate(range(3, 40)):
            ref = source.find(position, 0)
            talk, pairs, caption = counts_of(decode_sample(ref.key, ref.read()).meta["number"])
            got = (found.conversation_tokens[at], found.pairs[at], found.caption_tokens[at])
            if kind == "mixed" and ref.shard.startswith("b/"):
                assert np.isnan(got).all()
                continue
            known += 1
            assert got == (max(talk, 0), max(pairs, 0), max(caption, 0))
        assert known >= 20
        missing = [str(plain)] if kind == "mixed" else []
        assert source.uncounted(TOKENIZER) == missing and len(source.uncounted(16 * "b")) == 1 + len(missing)


def test_a_run_says_once_what_is_estimated(plain, counted):
    streams = {name: open_stream(name, StreamConfig(str(folder)), 0) for name, folder in (("a", plain), ("b", counted))}
    assert estimated_lengths({"b": streams["b"]}, TOKENIZER) == ""
    said = estimated_lengths(streams | {"c": streams["a"]}, TOKENIZER)
    assert said.count(str(plain)) == 1 and str(counted) not in said and "megaunigame prepare tokens" in said


class ByTokens(NumberCollator):
    def lengths(self, request, amounts):
        return np.where(np.isnan(amounts.conversation_tokens), amounts.json_bytes, amounts.conversation_tokens**2 % 97)


def test_a_run_that_is_resumed_may_have_counts(plain):
    """The same samples in every step, elsewhere; at any split."""
    plan = StepPlan((RowRequest("answer", UNDERSTAND, "s", 3),)).with_spare_places()

    def every_rank(accumulation, ranks, cursors=None, first=0):
        for rank in range(ranks):
            streams = {"s": open_stream("s", StreamConfig(str(plain), window=2), 3, (cursors or {}).get("s"))}
            batches = number_batches(plan, streams, NumberRows(), accumulation, rank, ranks, first, balance=True)
            batches.processor = ByTokens()
            batches.dealer.lengths = batches.processor.lengths
            yield batches

    without = [[batches[m] for m in (4, 5)] for batches in every_rank(2, 2)]
    cursors = stored_cursors(next(every_rank(2, 2)).cursors(2))
    write_counts(plain)
    for accumulation, ranks in ((2, 2), (1, 4), (4, 1)):
        resumed = [[b[m] for m in range(accumulation)] for b in every_rank(accumulation, ranks, cursors, first=2)]
        assert rows_of(sum(resumed, [])) == rows_of(sum(without, []))
        if ranks == 2:
            digests = {batch.dealing for each in resumed for batch in each}
            assert len(digests) == 2 and digests.isdisjoint({batch.dealing for each in without for batch in each})


def test_the_hash_of_the_data_stays(plain):
    before = ShardIndex.open(plain).hash
    write_counts(plain)
    assert ShardIndex.open(plain).hash == before


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([], "not an object"),
        ({"x": 64 * "a"}, "16 hexadecimal"),
        ({16 * "a": "b"}, "16 hexadecimal"),
        ({"../../../../aaaa": 64 * "a"}, "16 hexadecimal"),
        ({16 * "a": 3}, "16 hexadecimal"),
    ],
)
def test_what_a_manifest_may_not_say(plain, counts, words):
    list_counts(plain, counts)
    with pytest.raises(DataError, match=words):
        ShardIndex.open(plain)


def test_damaged_counts_end_the_run_with_the_command(counted, plain):
    path = counted / counts_name(TOKENIZER)
    content = path.read_bytes()
    again = rf"megaunigame prepare tokens {counted} --for RECIPE"
    path.write_bytes(content[:-1] + b"\1")
    with pytest.raises(DataError, match=f"sha256 differs.*{again}"):
        ShardIndex.open(counted).has_counts(TOKENIZER)
    path.write_bytes(content[:-4])
    list_counts(counted, {TOKENIZER: hashlib.sha256(content[:-4]).hexdigest()})
    with pytest.raises(DataError, match=f"164 bytes, and its shards have samples for 168.*{again}"):
        ShardIndex.open(counted).has_counts(TOKENIZER)
    path.unlink()
    with pytest.raises(DataError, match=f"cannot be opened.*{again}"):
        ShardIndex.open(counted).has_counts(TOKENIZER)
    assert ShardIndex.open(counted).hash == ShardIndex.open(plain).hash, "a run without loader.balance does not read them"


def test_cut_while_a_run_reads_them(counted):
    index = ShardIndex.open(counted)
    assert len(index.amounts(0, TOKENIZER)) == SIZES[0]
    with open(counted / counts_name(TOKENIZER), "r+b") as file:
        file.truncate(4 * COLUMNS * SIZES[0])
    with pytest.raises(DataError, match="cut short while this run reads it"):
        index.amounts(2, TOKENIZER)


def test_counts_at_a_url(counted, tmp_path, caplog):
    """Kept in the cache, and downloaded once more when they are damaged there."""
    fsspec.filesystem("memory").put(str(counted), "/counted", recursive=True)
    config = StreamConfig("memory://counted", cache=CacheConfig(str(tmp_path / "cache"), 0.01))
    local = open_stream("s", StreamConfig(str(counted)), 3).source.amounts(range(20), TOKENIZER)
    for damage in (False, True):
        if damage:
            (kept,) = (tmp_path / "cache").rglob(counts_name(TOKENIZER))
            kept.write_bytes(bytes(kept.stat().st_size))
        found = open_stream("s", config, 3).source.amounts(range(20), TOKENIZER)
        for field in dataclasses.fields(found):
            assert np.array_equal(getattr(found, field.name), getattr(local, field.name), equal_nan=True)
        assert ("downloaded once more" in caplog.text) is damage


def test_a_tokenizer_is_named_by_what_it_does():
    def made(text):
        return small_tokenizer([text] * 9, 270, ["<pad>", "<eos>"], pad="<pad>", bos=None, eos="<eos>")

    one, other = made("a cat"), made("a dog")
    assert tokenizer_hash(one) == tokenizer_hash(made("a cat")) != tokenizer_hash(other)
    before = tokenizer_hash(one)
    one(["a", "a b cat"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(one) == before, "what a call leaves in it is not a part of it"
    one.add_tokens(["<new>"])
    assert tokenizer_hash(one) != before
