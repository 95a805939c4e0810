"""`megaunigame prepare pack`: pictures and texts of published data sets into shards."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, replace
from pathlib import Path

from megaunigame.data.shards.unfinished import FAILURES
from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line

from .inputs.arrow import Arrow
from .inputs.base import Input
from .inputs.llava_json import LlavaJson
from .inputs.parquet import Parquet
from .inputs.table import COLUMNS
from .inputs.tar_members import FIRST, LAST
from .inputs.unimrg import UniMrg
from .inputs.vqa_json import VqaJson
from .inputs.wds import Tars
from .notes import notes_of
from .options import (
    add_failure_options,
    add_part_options,
    add_picture_options,
    part_of,
    picture_rules,
    require_at_least,
)
from .shard_writer import Job, enforce_limit, finish_dataset, write_dataset

FORMATS: dict[str, type[Input]] = {
    "llava-json": LlavaJson,
    "vqa-json": VqaJson,
    "wds": Tars,
    "parquet": Parquet,
    "arrow": Arrow,
    "unimrg": UniMrg,
}
SHARD_SIZE = 1000
PACKER = 5
"""Part of the config hash: raise it when the same source would give other bytes."""

EXAMPLES = """examples:
  megaunigame prepare pack --format llava-json --json llava_v1_5_mix665k.json --image-root data --out shards/llava
  megaunigame prepare pack --format vqa-json --questions v2_OpenEnded_mscoco_train2014_questions.json \\
      --annotations v2_mscoco_train2014_annotations.json --image-root coco/train2014 --out shards/vqa
  megaunigame prepare pack --format wds --source 'cc3m/cc3m-train-{0000..0575}.tar' --out shards/cc3m --workers 8
  megaunigame prepare pack --format parquet --source 'parquet/*.parquet' --caption-column text --out shards/mine
  megaunigame prepare pack --format arrow --source saved_to_disk/ --split train --out shards/mine
  megaunigame prepare pack --format unimrg --source data/LLaVA-Instruct-150K --target-size 512 --out shards/unimrg --workers 8
  megaunigame prepare pack --format wds --source img2dataset/ --out shards/web \\
      --rank $SLURM_ARRAY_TASK_ID --world $SLURM_ARRAY_TASK_COUNT      (the same command in every task)
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "pack",
        description="Packs a data set into WebDataset shards. Entries whose picture is missing or damaged are left out "
        f"and listed in {FAILURES}; too many of them are an error. An interrupted run continues where it stopped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=tuple(FORMATS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--name", help="shards are called NAME-000000.tar (default llava, vqa, wds, parquet, arrow or unimrg)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--shard-size", type=int, help=f"entries per shard (default {SHARD_SIZE}; wds: one per source tar)")
    add_picture_options(parser)
    add_part_options(parser)
    add_failure_options(parser)
    sources = parser.add_argument_group("sources")
    sources.add_argument(
        "--json", type=Path, help="llava-json: list of {id, image?, conversations}, or JSON lines; unimrg: one of another name"
    )
    sources.add_argument("--image-root", type=Path, help="llava-json, vqa-json, parquet, arrow: folder of the pictures")
    sources.add_argument("--questions", type=Path, help="vqa-json: the questions file")
    sources.add_argument("--annotations", type=Path, help="vqa-json: the annotations file; none for a test set")
    sources.add_argument(
        "--image-pattern",
        metavar="P",
        help="vqa-json: name of a picture (default the COCO one of the questions' data_subtype, such as "
        "'COCO_train2014_{image_id:012d}.jpg')",
    )
    sources.add_argument(
        "--source",
        nargs="+",
        metavar="PATH",
        help="wds, parquet, arrow: folders, files, globs or brace lists; unimrg: the folder with tuning_data",
    )
    sources.add_argument(
        "--dots",
        choices=(FIRST, LAST),
        help="wds: the field of a file is what follows the first dot of its name, as in WebDataset (default; what looks like "
        "several samples is then a failure, unless `first` is typed), or the last",
    )
    sources.add_argument(
        "--target-size",
        type=int,
        metavar="N",
        help="unimrg: pixels of the shorter side of depth maps, where the picture has more (default: the picture's size)",
    )
    sources.add_argument("--split", help="wds, parquet, arrow: the split to pack of a folder with several")
    for column, known in COLUMNS.items():
        sources.add_argument(
            f"--{column}-column", metavar="C", help=f"parquet, arrow: column of the {column} (default {' or '.join(known)})"
        )
    parser.set_defaults(run=run)


def job_of(arguments: argparse.Namespace) -> tuple[Input, Job]:
    """The source, and what to write. Raises DataError for wrong options, and for a source that is not of its format."""
    _require_options(arguments)
    if arguments.shard_size is None:
        arguments.shard_size = SHARD_SIZE
    require_at_least(arguments, shard_size=1, workers=1)
    rules = picture_rules(arguments)
    source = replace(FORMATS[arguments.format].from_arguments(arguments), rules=rules)
    name = source.shard_name if arguments.name is None else arguments.name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise DataError(f"--name {name}: only letters, digits, - and _ can be part of a shard's name")
    return source, Job(
        folder=arguments.out,
        name=name,
        config={"command": "pack", "packer": PACKER, "format": arguments.format, **asdict(rules), **source.identity()},
        shards=source.shards,
        shard=source.shard,
        command=arguments.command_line,
    )


def run(arguments: argparse.Namespace) -> None:
    """Pack. Raises DataError for a source that is not of its format, or when too many entries fail."""
    part = part_of(arguments)
    source, job = job_of(arguments)
    if arguments.rank == 0:  # for all ranks: the limit is a fraction of the whole data set, and missing files may be clustered
        absent, entries = source.absent()
        enforce_limit(arguments.out, absent, entries, arguments.max_failed_fraction)
    statistics = write_dataset(job, arguments.workers, arguments.overwrite, part, arguments.retry_failed)
    if statistics is None:
        return
    if not any(stats["samples"] + stats["failed"] for stats in statistics):
        raise DataError(f"{arguments.out}: there is not one sample in the source; give a source that has some")
    print(finish_dataset(job, statistics, arguments.max_failed_fraction))
    packed, failed = (sum(stats[name] for stats in statistics) for name in ("samples", "failed"))
    print(f"{packed} of {packed + failed} entries packed, {failed} failed")
    for note, count in notes_of(statistics).items():
        print(f"  {count} x {one_line(note)}")


def _require_options(arguments: argparse.Namespace) -> None:
    """Raises DataError for a missing source option, or one of another format."""
    wanted = FORMATS[arguments.format]
    for name in wanted.needs:
        if getattr(arguments, name) is None:
            raise DataError(f"--format {arguments.format} needs {_option(name)}; pack --help shows examples")
    known = {name for source in FORMATS.values() for name in (*source.needs, *source.takes)}
    for name in sorted(known - {*wanted.needs, *wanted.takes}):
        if getattr(arguments, name) is not None:
            theirs = [form for form, source in FORMATS.items() if name in (*source.needs, *source.takes)]
            raise DataError(f"{_option(name)} is for --format {' or '.join(theirs)}, not for {arguments.format}; leave it out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
