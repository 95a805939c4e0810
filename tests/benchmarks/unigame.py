"""What a step of the game costs next to fine-tuning: `python -m tests.benchmarks.unigame`.

One launch of gloo ranks steps through the cases in turn: fine-tuning (SFT), the alternating and the simultaneous
game, and the released procedure (`path: sampled`: one candidate drawn token by token, guidance 5). All have the same clean
rows; the game attacks as many pictures. Cases `+ hard` also replay rows from the buffer.

A step should cost what its operations say. A second table says how the ratio of step times to SFT compares with the ratio of
operations, which are counted while a step runs: those of CLIP, decoders and players, too.

64 tokens per picture is the shipped tiny Janus with the settings of tiny_unigame.yaml; other numbers of tokens are random
models of the same widths on larger renderings. The CLIP filter is computed and lets everything pass (tau -1), so that the
buffer fills, and every step merges. No dry run, no report pictures, no checkpoints. CPU seconds are those of rank 0: other
jobs on the machine change them less than the clock.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megaunigame.models.janus.configuration import codes_per_image, read_config
from megaunigame.models.janus.folder import random_state, write_folder
from tests.benchmarks.recording import Cell, Table, at_least, at_most, run
from tests.benchmarks.step_cases import (
    Steps,
    case,
    cells,
    columns,
    cpu_ratio,
    flops_ratio,
    launch,
    mean,
    middle,
    ratio,
    write_scenes,
)
from tests.benchmarks.step_ranks import FLOPS, REPLAYED
from tests.multi_process.launcher import REPOSITORY

SHIPPED = REPOSITORY / "megaunigame" / "tiny_world" / "weights" / "janus"
RECIPE = "launch/recipes/tiny_unigame.yaml"
SFT, ALTERNATING, SIMULTANEOUS, SAMPLED = "SFT", "alternating", "simultaneous", "sampled"
GAMES: dict[str, dict[str, Any]] = {
    ALTERNATING: {},
    SIMULTANEOUS: {"mode": "simultaneous"},
    SAMPLED: {"path": "sampled", "sampling": {"candidates": 1, "guidance": 5.0, "temperature": 1.0}},
}
HARD = " + hard"
"""Ends the names of cases that replay."""
TARGET = 1.05
"""Largest ratio of step times, over the ratio of operations, that the design allows."""
SAMPLED_TARGET = 10.0
"""Least ratio of sampled to alternating at 64 tokens."""
OVER, RATIO = "CPU over operations", "sampled / alternating"
LARGER_ROUNDS = 3
"""Larger pictures are there for one ratio, sampled to alternating. Sampled steps once: that is hundreds of passes."""


def shipped_tokens() -> int:
    return codes_per_image(read_config(SHIPPED))


def write_model(folder: Path, tokens: int) -> Path:
    """The shipped Janus, or for another number of tokens per picture a random one of its widths."""
    config = copy.deepcopy(read_config(SHIPPED))
    if tokens == codes_per_image(config):
        return SHIPPED
    grid = math.isqrt(tokens)
    config.vision_config.image_size = grid * config.vision_config.patch_size
    config.vision_config.num_image_tokens = tokens
    config.vq_config.num_patches = grid
    config.text_config.max_position_embeddings = longest_row(tokens)
    write_folder(folder, config, random_state(config, 0), PreTrainedTokenizerFast.from_pretrained(str(SHIPPED)))
    return folder


def longest_row(tokens: int) -> int:
    """Two pictures (the source and its codes) and text: the recipe's own 320 at 64 tokens."""
    return 2 * tokens + 192


def block(home: Path, tokens: int, options: Namespace) -> dict[str, Any]:
    """The cases at one number of tokens per picture, as the rank program reads them; writes model and shards."""
    grid, whole = math.isqrt(tokens), tokens == shipped_tokens()
    model, shards = write_model(home / f"model{tokens}", tokens), home / f"shards{tokens}"
    write_scenes(shards, "--size", str(grid * read_config(model).vision_config.patch_size))
    rounds = options.steps if whole else LARGER_ROUNDS
    sampled_every = max(1, rounds // options.sampled_steps) if whole and options.sampled_steps else rounds
    engine = f"ds_configs/{options.ds_config}.json"
    common = {
        "engine.ds_config": engine,
        "model.path": str(model),
        "model.max_length": longest_row(tokens),
        "engine.timeout_minutes": 30,
    }
    sft = {"objectives": {"understanding": {"rows": options.clean, "stream": "scenes", "independent": True}}}
    chosen: dict[str, dict[str, Any]] = {SFT: sft}
    for name, game in GAMES.items():
        if name == SAMPLED and not options.sampled_steps:
            continue
        for label, hard in [(name, 0), (name + HARD, options.hard)] if whole and name != SAMPLED else [(name, 0)]:
            settings = {
                "clean_rows": options.clean,
                "attack_rows": options.attack or options.clean,
                "hard_rows": hard,
                "clip.tau": -1.0,
                "buffer": {"merge_every": 1, "hardness": "loss", "label_check": False},
                "pictures_every": 0,
                **game,
            }
            chosen[label] = {f"objectives.unigame.{key}": value for key, value in settings.items()}
    cases = []
    for name, own in chosen.items():
        every = sampled_every if name.startswith(SAMPLED) else 1
        warmup = 0 if name == SAMPLED else options.warmup  # the first of its many passes warms the others
        output, steps = home / "runs" / str(tokens), rounds + options.warmup
        cases.append(case(name, RECIPE, shards, output, steps, warmup, {**common, **own}, every))
    return {"title": f"{tokens} tokens", "tokens": tokens, "rounds": rounds, "cases": cases}


def tables(blocks: list[dict[str, Any]], measured: list[dict[str, Steps]], options: Namespace) -> list[Table]:
    """Steps; what they take over their operations; sampled against alternating."""
    times: list[list[Cell]] = []
    operations: list[list[Cell]] = []
    sampled: list[list[Cell]] = []
    for described, cases in zip(blocks, measured, strict=True):
        tokens, whole, sft = described["tokens"], described["tokens"] == shipped_tokens(), cases[SFT]
        for name, steps in cases.items():
            hard = options.hard if name.endswith(HARD) else 0
            attack = 0 if name == SFT else options.attack or options.clean
            about = [tokens, name, f"{options.clean} + {hard} + {attack}", len(steps)]
            times.append([*about, *cells(steps, sft, SFT, None), mean(steps, REPLAYED)])
            if name != SFT and middle(steps, FLOPS):
                flops, wall, cpu = flops_ratio(steps, sft), ratio(steps, sft)["median"], cpu_ratio(steps, sft)
                operations.append([tokens, name, flops, cpu, cpu / flops, at_most(TARGET, OVER), wall, wall / flops])
        if SAMPLED in cases:
            of_steps, in_cpu = ratio(cases[SAMPLED], cases[ALTERNATING]), cpu_ratio(cases[SAMPLED], cases[ALTERNATING])
            sampled.append([tokens, len(cases[SAMPLED]), of_steps, in_cpu, at_least(SAMPLED_TARGET, RATIO) if whole else None])
    head = ["tokens", "case", "rows: clean + hard + attacked", "steps", *columns(SFT), "replayed"]
    counted = ["tokens", "case", "operations / SFT", "CPU / SFT", OVER, "aim", "wall / SFT", "wall over operations"]
    found = [
        Table(head, times, "Steps:"),
        Table(counted, operations, "Ratios of times against those of operations:"),
        Table(["tokens", "sampled steps", RATIO, "in CPU time", "aim"], sampled, "Sampled against alternating:"),
    ]
    return [table for table in found if table.rows]


def tokens_per_picture(text: str) -> int:
    tokens = int(text)
    if math.isqrt(tokens) ** 2 != tokens or tokens < shipped_tokens():
        raise argparse.ArgumentTypeError(f"{tokens}: must be a square number, {shipped_tokens()} or more")
    return tokens


def measure(options: Namespace) -> list[Table]:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        blocks = [block(home, tokens, options) for tokens in options.tokens]
        return tables(blocks, launch(blocks, options.ranks, home, hours=4), options)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--ranks", type=int, default=2)
    made.add_argument("--steps", type=int, default=12, help="measured steps at 64 tokens (default 12)")
    made.add_argument("--sampled-steps", type=int, default=1, help="of which sampled (default 1; 0: leave it out)")
    made.add_argument("--warmup", type=int, default=2, help="steps before (default 2; sampled: none)")
    made.add_argument("--ds-config", default="zero3_cpu", help="of ds_configs/ (default zero3_cpu)")
    made.add_argument("--tokens", type=tokens_per_picture, nargs="+", default=[64, 256, 576], help="per picture")
    made.add_argument("--clean", type=int, default=4, help="clean rows per rank (default 4)")
    made.add_argument("--hard", type=int, default=2, help="replayed rows per rank of the cases `+ hard`")
    made.add_argument("--attack", type=int, help="attacked pictures per rank (default: as clean rows)")
    return made


if __name__ == "__main__":
    run(parser(), measure)
