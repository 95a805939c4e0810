"""`megaunigame prepare annotate`: shards in, the same with depth, segmentation, picture-text similarity and codes out."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from megaunigame.data.decode import CODES_FIELD, DEPTH_FIELD, IMAGE_FIELDS, META_FIELD, SEGMENTATION_FIELD
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.manifest import MANIFEST
from megaunigame.data.shards.unfinished import FAILURES
from megaunigame.errors import ConfigError, DataError

from .annotator import EXISTING, Annotator, already_there
from .options import (
    add_failure_options,
    add_part_options,
    add_picture_options,
    part_of,
    picture_rules,
    require_at_least,
)
from .shard_writer import Job, enforce_limit, finish_dataset, write_dataset
from .teachers.base import TASKS, Machine, Teacher, load_teacher

EXAMPLES = """examples:
  megaunigame prepare annotate shards/llava --out shards/llava-targets --tasks depth,segmentation \\
      --depth-model models/Depth-Anything-V2-Large-hf --segmentation-model models/sam-vit-huge \\
      --device cuda --dtype bfloat16 --target-size 512
  megaunigame prepare annotate shards/cc3m --out shards/cc3m-clip --tasks clip \\
      --set clip.model=ViT-L-14 clip.pretrained=openai
  megaunigame prepare annotate shards/mine --out shards/regions --tasks segmentation --segmentation-teacher classic
  megaunigame prepare annotate shards/mine --out shards/depth --tasks depth --depth-teacher file \\
      --set depth.folder=maps 'depth.pattern={id}.png'
  megaunigame prepare annotate shards/llava --out shards/llava-targets --tasks depth \\
      --rank $SLURM_ARRAY_TASK_ID --world $SLURM_ARRAY_TASK_COUNT
  megaunigame prepare annotate shards/llava --out shards/llava-emu3 --tasks codes --model models/Emu3-Gen-hf --family emu3
"""
DEFAULT_TEACHERS = {"depth": "depth_anything", "segmentation": "sam", "clip": "open_clip", "codes": "tokenizer"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FIELD_OF = {"depth": DEPTH_FIELD, "segmentation": SEGMENTATION_FIELD, "codes": CODES_FIELD}
ENCODING = 2
"""Part of the config hash: raise it when the same predictions would be stored as other bytes."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "annotate",
        description="Reads a folder of shards and writes another with targets for every picture, shard for shard. "
        "Samples without a picture pass through. Samples whose picture cannot be decoded, or without a usable prediction, "
        f"are left out and listed in {FAILURES}; too many of them end the run. An interrupted run continues.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN", help="folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new shards")
    parser.add_argument("--tasks", required=True, help=f"some of {','.join(TASKS)}")
    for task, default in DEFAULT_TEACHERS.items():
        parser.add_argument(f"--{task}-teacher", default=default, metavar="NAME", help=f"default {default}")
        parser.add_argument(f"--{task}-model", metavar="PATH", help=f"short for --set {task}.model=PATH")
    parser.add_argument("--model", metavar="PATH", help="the model to be trained, for codes: short for --codes-model PATH")
    parser.add_argument("--family", metavar="NAME", help="its family: short for --set codes.family=NAME")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="TASK.KEY=VALUE", help="settings of the teachers"
    )
    parser.add_argument(
        "--target-size",
        type=int,
        default=0,
        metavar="N",
        help="pixels of the targets' shorter side, where the picture has more (default 0: the picture's size)",
    )
    parser.add_argument("--existing", choices=EXISTING, default="refuse", help="targets the source has (default refuse)")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu, ... (default auto: a GPU if there is one)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the depth and segmentation models; codes: float32"
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures in one forward (default 8)")
    parser.add_argument("--threads", type=int, default=4, help="threads that decode and encode (default 4)")
    parser.add_argument("--name", help="shards are called NAME-000000.tar (default: as in IN)")
    add_picture_options(parser)
    add_part_options(parser)
    add_failure_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Annotate. Raises DataError or ConfigError, before a teacher is loaded where possible, and DataError as soon as more
    samples failed than are allowed."""
    _check(arguments)
    tasks = parse_tasks(arguments.tasks)
    settings = parse_settings(arguments, tasks)
    rules = picture_rules(arguments)
    index = ShardIndex.open(arguments.source)
    _check_source(index, tasks, arguments)
    machine = Machine(_device(arguments.device), DTYPES[arguments.dtype], arguments.batch)
    names = {task: str(getattr(arguments, f"{task}_teacher")) for task in tasks}
    teachers = {task: load_teacher(task, names[task], settings[task], machine) for task in tasks}
    part = part_of(arguments)
    with SampleProgress(index, part) as progress:
        failures: list[dict[str, str]] = []

        def failed(failure: dict[str, str]) -> None:
            failures.append(failure)
            enforce_limit(arguments.out, failures, index.samples, arguments.max_failed_fraction)

        annotator = Annotator(
            index,
            teachers,
            batch=arguments.batch,
            threads=arguments.threads,
            target_size=arguments.target_size,
            existing=arguments.existing,
            progress=progress.done,
            failed=failed,
            rules=rules,
        )
        job = Job(
            folder=arguments.out,
            name=arguments.name or _name_of(index),
            config=config_of(index, arguments, names, teachers),
            shards=len(index.sizes),
            shard=annotator.shard,
            command=arguments.command_line,
        )
        statistics = write_dataset(job, 1, arguments.overwrite, part, arguments.retry_failed)
    print(summary(annotator))
    if statistics is not None:
        print(finish_dataset(job, statistics, arguments.max_failed_fraction))


def parse_tasks(text: str) -> tuple[str, ...]:
    """The tasks of `--tasks a,b`, in the order of TASKS. Raises ConfigError for an unknown or repeated task."""
    given = [word.strip() for word in text.split(",")]
    if sorted(given) != sorted(set(given) & set(TASKS)):
        raise ConfigError(f"--tasks {text}: legal are some of {','.join(TASKS)}, each once, for example --tasks depth,clip.")
    return tuple(task for task in TASKS if task in given)


def parse_settings(arguments: argparse.Namespace, tasks: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Settings per task, from `--TASK-model` and `--set`. Raises ConfigError for a bad or repeated setting, or another task."""
    settings: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    short = {f"{task}.model": getattr(arguments, f"{task}_model") for task in TASKS}
    shortest = {"codes.model": arguments.model, "codes.family": arguments.family}
    pairs = [f"{key}={value}" for key, value in (*short.items(), *shortest.items()) if value is not None]
    for given in [*pairs, *arguments.set]:
        key, equals, value = given.partition("=")
        task, dot, name = key.partition(".")
        if not equals or not dot:
            raise ConfigError(f"--set {given}: write TASK.KEY=VALUE, for example --set segmentation.points_per_side=16.")
        if task not in settings:
            raise ConfigError(f"--set {given}: {task!r} is not among the tasks, which are {', '.join(tasks)} (--tasks).")
        if name in settings[task]:
            raise ConfigError(f"{key} is given twice ({settings[task][name]!r} and {value!r}).")
        try:
            settings[task][name] = yaml.safe_load(value)
        except yaml.YAMLError:
            settings[task][name] = value  # a text that is not valid YAML, such as {key}.png
        if isinstance(settings[task][name], dict | list):
            settings[task][name] = value
    return settings


def config_of(
    index: ShardIndex, arguments: argparse.Namespace, names: dict[str, str], teachers: dict[str, Teacher]
) -> dict[str, Any]:
    """Everything that decides what is written. No path and no device: these may differ between ranks."""
    manifest = arguments.source / MANIFEST
    return {
        "command": "annotate",
        "encoding": ENCODING,
        "source": {
            "index": index.hash,
            "samples": index.samples,
            "config": json.loads(manifest.read_text()).get("config") if manifest.is_file() else None,
        },
        "target_size": arguments.target_size,
        **asdict(picture_rules(arguments)),
        "existing": arguments.existing,
        "teachers": {task: {"teacher": names[task], **teacher.identity} for task, teacher in teachers.items()},
    }


def summary(annotator: Annotator) -> str:
    """How many pictures, how fast, and where the time went."""
    if not annotator.images:
        return "nothing was left to annotate"
    taken = annotator.teacher_seconds
    shares = ", ".join(f"{task} {100 * seconds / annotator.seconds:.0f}%" for task, seconds in taken.items())
    return (
        f"{annotator.images} pictures in {annotator.seconds:.0f} s, {annotator.images / annotator.seconds:.2f} a second; "
        f"of the time: {shares}, waiting for files and pictures "
        f"{100 * (1 - sum(taken.values()) / annotator.seconds):.0f}%"
    )


class SampleProgress:
    """A progress bar over the samples of one rank's shards, below the bar of the shards."""

    def __init__(self, index: ShardIndex, part: tuple[int, int]):
        rank, world = part
        self._ahead = [(number, int(index.sizes[number])) for number in range(rank, len(index.sizes), world)]
        self._bar = tqdm(total=sum(samples for _, samples in self._ahead), unit="sample", desc="samples", position=1)

    def __enter__(self) -> SampleProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def done(self, shard: int, samples: int) -> None:
        """Shards come in ascending order; skipped ones existed before, and their samples count as done in no time."""
        while self._ahead and self._ahead[0][0] <= shard:
            number, size = self._ahead.pop(0)
            if number < shard:
                self._bar.initial += size
                self._bar.n += size
        self._bar.update(samples)


def _check(arguments: argparse.Namespace) -> None:
    require_at_least(arguments, batch=1, threads=1, target_size=0)
    part_of(arguments)
    if not 0 <= arguments.max_failed_fraction <= 1:
        raise ConfigError(f"--max-failed-fraction {arguments.max_failed_fraction}: must be a fraction from 0 to 1.")
    if arguments.name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", arguments.name):
        raise ConfigError(f"--name {arguments.name}: only letters, digits, - and _ can be part of a shard's name.")
    if arguments.out.resolve() == arguments.source.resolve():
        raise ConfigError(f"--out {arguments.out} is IN; shards are never changed in place. Give another folder.")


def _check_source(index: ShardIndex, tasks: tuple[str, ...], arguments: argparse.Namespace) -> None:
    """Raises DataError for shards without json or pictures, and for targets that already exist."""
    if META_FIELD not in index.fields:
        raise DataError(
            f"{arguments.source}: its samples have {', '.join(index.fields)}, but no json; bring them into this project's form "
            f"first: megaunigame prepare pack --format wds (--help shows how)."
        )
    if not set(IMAGE_FIELDS) & set(index.fields):
        raise DataError(f"{arguments.source}: no sample has a picture ({', '.join(IMAGE_FIELDS)}); nothing to annotate.")
    there = [task for task in tasks if task in FIELD_OF and FIELD_OF[task] in index.fields]
    if there and arguments.existing == "refuse":
        raise already_there(str(arguments.source), there)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises for: no such device
        raise ConfigError(
            f"--device {name}: {str(error).splitlines()[0]} Legal here: auto, cpu or a GPU that exists."
        ) from error
    return device


def _name_of(index: ShardIndex) -> str:
    """The name of the shards: what precedes the number of the first."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(index.name(0)).stem)
    return re.sub(r"[-_]?\d+$", "", stem) or "shard"
