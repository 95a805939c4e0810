"""`megaunigame prepare tokens DIR --for RECIPE`: counts the tokens of all texts, by which `loader.balance` deals rows.

The counts of a tokenizer are a file next to the shards, named in dataset.json. Shards and indexes are not touched, so a run
that is resumed may use them.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from megaunigame.config import load_recipe
from megaunigame.data.conversation import TALK_KEYS, read_conversation
from megaunigame.data.decode import IMAGE_FIELDS, META_FIELD, further_fields, meta_of
from megaunigame.data.shards.manifest import MANIFEST, TOKEN_COUNTS
from megaunigame.data.shards.table import index_name, read_table
from megaunigame.data.shards.token_counts import CELL, COLUMNS, NONE, counts_name
from megaunigame.errors import DataError
from megaunigame.models.base import Processor

from .options import require_at_least
from .recipe_rows import processor_of
from .statistics import read_manifest
from .whole_files import write_atomically
from .workers import in_processes


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "tokens",
        description="Counts the tokens of every conversation and caption with the tokenizer of a recipe's model. Runs with "
        "loader.balance=true and this tokenizer then deal rows by exact lengths; without counts they estimate them. Counts of "
        "several tokenizers may be in a folder. The model's weights are not read.",
        epilog="examples:\n  megaunigame prepare tokens shards/llava --workers 8 --for launch/recipes/janus_pro_7b_sft.yaml "
        "model.path=models/Janus-Pro-7B\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--for",
        dest="recipe",
        nargs="+",
        required=True,
        metavar=("RECIPE", "KEY=VALUE"),
        help="the recipe whose model has the tokenizer",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Raises DataError without a manifest, and for shards that are not those it describes; UserError for a recipe that cannot
    be read."""
    require_at_least(arguments, workers=1)
    manifest = read_manifest(arguments.folder)
    tokenizer = _processor(tuple(arguments.recipe)).tokenizer_hash
    shards = [shard["file"] for shard in manifest["shards"]]
    for shard in manifest["shards"]:
        _check_whole(arguments.folder / shard["file"], shard)
    counted = dict(_counted(arguments.folder, tuple(arguments.recipe), shards, arguments.workers))
    before = manifest["shards"]
    content = b"".join(counted[file].tobytes() for file in shards)
    write_atomically(arguments.folder / counts_name(tokenizer), content)
    manifest = read_manifest(arguments.folder)  # counts of another tokenizer may have been added meanwhile
    if manifest["shards"] != before:
        raise DataError(f"{arguments.folder} was written again while its tokens were counted; type the same command again")
    manifest[TOKEN_COUNTS] = {**manifest.get(TOKEN_COUNTS, {}), tokenizer: hashlib.sha256(content).hexdigest()}
    write_atomically(arguments.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    every = np.concatenate([counted[file] for file in shards])
    talks, captions = (every[:, column][every[:, column] != NONE] for column in (0, 2))
    print(f"{arguments.folder / counts_name(tokenizer)}: {len(every):,} samples")
    if unread := int((every == NONE).all(1).sum()):
        print(f"{unread:,} samples have no conversation and no caption that can be read: a run replaces those that it needs")
    for what, tokens in (("conversations", talks), ("captions", captions)):
        if len(tokens):
            print(f"{len(tokens):,} {what} of {tokens.mean():.1f} tokens on average, at most {tokens.max():,}")


def _check_whole(tar: Path, shard: dict[str, Any]) -> None:
    """Raises DataError: a shard that was cut short would get counts as if its samples had no texts."""
    try:
        size, index = tar.stat().st_size, tar.with_name(index_name(tar.name)).read_bytes()
    except OSError as error:
        raise DataError(f"{tar} or its index cannot be read ({error}). Copy it again") from error
    if size != shard["bytes"] or hashlib.sha256(index).hexdigest() != shard["index_sha256"]:
        raise DataError(
            f"{tar} or its index is not what {MANIFEST} describes: it was cut short or replaced. Copy it again; `megaunigame "
            f"prepare verify {tar.parent}` looks at every shard"
        )


@functools.lru_cache(maxsize=1)
def _processor(recipe: tuple[str, ...]) -> Processor:
    """That of the recipe's model; `recipe`: its name or path, and overrides. Raises UserError."""
    return processor_of(load_recipe(recipe[0], [*recipe[1:]]).model)[1]


def counts_of(folder: Path, recipe: tuple[str, ...], file: str) -> np.ndarray:
    """(samples, COLUMNS) of a shard. Raises DataError for a damaged index."""
    tar, processor = folder / file, _processor(recipe)
    table = read_table(tar)
    counts = np.full((len(table), COLUMNS), NONE, dtype=CELL)
    with open(tar, "rb") as stream:
        for i in range(len(table)):
            spans = table.spans_of(i)
            offset, size = spans.get(META_FIELD, (0, 0))
            stream.seek(offset)
            pictures = len(further_fields(spans)) + any(field in spans for field in IMAGE_FIELDS)
            try:
                counts[i] = tokens_in(meta_of(table.key(i), stream.read(size)), pictures, processor)
            except DataError:
                continue  # a run replaces the sample, and says why
    return counts


def tokens_in(meta: dict[str, Any], pictures: int, processor: Processor) -> tuple[int, int, int]:
    """The columns of a sample with this JSON and so many images."""
    talk, caption = next((meta[key] for key in TALK_KEYS if meta.get(key)), None), meta.get("caption")
    tokens = pairs = drawn = NONE
    if talk is not None:
        try:
            turns = read_conversation(talk, pictures).asked()
            tokens, pairs = sum(processor.count_tokens(text) for turn in turns for text in turn), len(turns)
        except DataError:
            pass
    if isinstance(caption, str) and caption.strip():
        drawn = processor.count_tokens(caption.replace("\0", ""))
    return tokens, pairs, drawn


def _counted(folder: Path, recipe: tuple[str, ...], files: list[str], workers: int) -> Iterator[tuple[str, np.ndarray]]:
    """Shards in the order in which they are done, each with its counts."""
    count = functools.partial(counts_of, folder, recipe)
    with tqdm(total=len(files), unit="shard", desc="tokens") as bar:
        done = zip(files, map(count, files), strict=True) if workers == 1 else in_processes(count, files, workers, name=str)
        for file, counts in done:
            bar.update()
            yield file, counts
