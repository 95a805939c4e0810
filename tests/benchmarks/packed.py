"""What padding costs: training steps of a narrow Janus on rows of LLaVA's lengths, padded and packed.

    python -m tests.benchmarks.packed [--rows 8 16] [--layers 4] [--width 256] [--steps 5] [--dtype float32] [--ranks 2]

An understand row has a picture of 576 visual tokens, a question, and an answer of a log-normal number of tokens (median 170,
sigma .95), at most 2,048 together; a generate row a prompt of 5 to 80 tokens, padded in front, before its 576 codes. Each step
has other rows, the same for both models, which take turns in one process: ratios are of the medians of CPU seconds, forward and
backward, the vision tower (narrow) included and the image tokenizer not. Losses are compared.

With `--ranks` it measures whole steps of the trainer under ZeRO-3 instead, understand rows only, and `--rows` are those of a
rank: both ways see the same rows of the same shards in turn. Every rank waits for the slowest, so the clock is compared, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from megaunigame.models.janus import Janus
from megaunigame.models.janus.sizes import TINY, write
from megaunigame.monitoring import names
from megaunigame.step.inputs import PassInputs, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.benchmarks.recording import Cell, Table, at_least, run, spread
from tests.benchmarks.step_cases import Steps, case, cpu_ratio, launch, middle, ratio
from tests.data.shard_files import encoded, talk, write_shards
from tests.models.shared import generate, understand

TARGET = 1.6
"""Smallest ratio of understand steps that the design asks for."""
LONGEST, SIDE, CODES, HEAD = 2048, 384, 576, 64
PICTURE = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
QUESTION = "what " * 25
RECIPE, PADDED, PACKED = "launch/recipes/tiny_sft.yaml", "padded", "packed"
CPU, CLOCK = "CPU, padded / packed", "clock, padded / packed"


def built(folder: Path, options: argparse.Namespace) -> Janus:
    """A model of random weights, the same each time."""
    processor = Janus.open_processor(str(folder), max_length=LONGEST)
    model = Janus.build(str(folder), processor, attention="sdpa", gradient_checkpointing=False)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.to(getattr(torch, options.dtype)).train()


def write_shape(folder: Path, options: argparse.Namespace) -> None:
    heads = options.width // HEAD
    text = {
        **{"hidden_size": options.width, "intermediate_size": options.width * 11 // 4, "num_hidden_layers": options.layers},
        **{"num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4), "max_position_embeddings": LONGEST},
    }
    picture = {"projection_dim": options.width, "num_image_tokens": CODES}
    vision = {"image_size": SIDE, "patch_size": 16, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = {"channel_multiplier": [1] * 5, "projection_dim": options.width, "image_token_embed_dim": options.width}
    write(TINY, {"text_config": text, "vision_config": {**vision, **picture}, "vq_config": tokenizer}, folder)


def answer_lengths(count: int, generator: torch.Generator) -> list[int]:
    return ((torch.randn(count, generator=generator) * 0.95).exp() * 170).long().clamp(1, LONGEST - 648).tolist()


def rows(model: Janus, pass_name: str, count: int, generator: torch.Generator) -> PassInputs:
    """Inputs of one step."""
    if pass_name == UNDERSTAND:
        answers = answer_lengths(count, generator)
        return understand(model, *(UnderstandRow([PICTURE], [(QUESTION, "a " * number)]) for number in answers))
    prompts = torch.randint(5, 80, (count,), generator=generator).tolist()
    return generate(model, *(GenerateRow("a " * number, PICTURE) for number in prompts))


def loss_of(model: Janus, inputs: PassInputs) -> Tensor:
    if isinstance(inputs, UnderstandInputs):
        return model(inputs).loss_sum.sum()
    codes = torch.arange(CODES).expand(len(inputs.tokens), -1) % 256
    return model.predict_codes(inputs, codes, False).loss_sum.sum()  # type: ignore[arg-type]


def passes(pass_name: str, count: int, models: dict[str, Janus], options: argparse.Namespace) -> list[Cell]:
    """A line of the table: `count` rows of a pass, in the models themselves."""
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    shares = []
    for step in range(options.steps + 1):
        inputs = rows(models[PADDED], pass_name, count, generator)
        losses = []
        for name, model in models.items():
            model.zero_grad()
            start = time.process_time()
            loss = loss_of(model, inputs)
            loss.backward()
            if step:  # the first is a warm-up
                seconds[name].append(time.process_time() - start)
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) <= (1e-5 if options.dtype == "float32" else 1e-2) * losses[0], losses
        more = 0 if pass_name == UNDERSTAND else CODES - 1
        shares.append((sum(inputs.lengths) / count + more) / (inputs.tokens.shape[1] + more))
    padded, packed = (statistics.median(each) for each in seconds.values())
    ratios = spread(a / b for a, b in zip(seconds[PADDED], seconds[PACKED], strict=True)) | {"median": padded / packed}
    aim = at_least(TARGET, CPU) if pass_name == UNDERSTAND else None
    return [count, pass_name, statistics.mean(shares), padded, packed, ratios, aim]


def measure_model(folder: Path, options: argparse.Namespace) -> Table:
    torch.set_num_threads(1)
    models = {PADDED: built(folder, options), PACKED: built(folder, options)}
    models[PACKED].pack_rows(LONGEST * max(options.rows))
    lines = [passes(name, count, models, options) for count in options.rows for name in (UNDERSTAND, GENERATE)]
    shape = f"{options.layers} layers of width {options.width}, {options.dtype}, one process, one thread:"
    columns = ["rows", "pass", "share of padded positions that are tokens", "padded, CPU s", "packed, CPU s", CPU, "aim"]
    return Table(columns, lines, shape)


def write_talks(folder: Path, count: int) -> Path:
    """Shards of one conversation a sample, with answers of the same lengths."""
    picture = encoded(np.zeros((SIDE, SIDE, 3), np.uint8), "JPEG")
    lengths = answer_lengths(count, torch.Generator().manual_seed(0))

    def fields(number: int) -> dict[str, bytes]:
        told = talk((QUESTION, "a " * lengths[number]))
        return {"jpg": picture, "json": json.dumps({"conversations": told}).encode()}

    return write_shards(folder, [count], fields)


def measure_steps(folder: Path, options: argparse.Namespace) -> Table:
    """Whole steps of the trainer on several ranks."""
    shards = write_talks(folder / "shards", 256)
    blocks, steps, warmup = [], options.steps, 2
    for count in options.rows:
        common = {
            **{"model.path": str(folder), "model.weights": "random", "model.train": "full", "model.attention": "sdpa"},
            **{"model.max_length": LONGEST, "engine.timeout_minutes": 30},
            "objectives": {"understanding": {"rows": count, "stream": "scenes"}},
        }
        ways = {PADDED: 0, PACKED: LONGEST * count}
        cases = [
            case(
                name,
                RECIPE,
                shards,
                folder / "runs" / str(count),
                steps + warmup,
                warmup,
                {**common, "model.pack_tokens": tokens},
            )
            for name, tokens in ways.items()
        ]
        blocks.append({"title": f"{count} rows", "rounds": steps, "cases": cases})
    measured = launch(blocks, options.ranks, folder, hours=2)
    lines = [steps_line(count, found) for count, found in zip(options.rows, measured, strict=True)]
    shape = f"{options.layers} layers of width {options.width}, float32, {options.ranks} gloo ranks, ZeRO-3, whole steps:"
    return Table(["rows of a rank", "padded, s", "packed, s", CLOCK, "aim", f"rank 0: {CPU}"], lines, shape)


def steps_line(count: int, found: dict[str, Steps]) -> list[Cell]:
    padded, packed = found[PADDED], found[PACKED]
    seconds = [middle(steps, names.PERF_STEP_SECONDS) for steps in (padded, packed)]
    return [count, *seconds, ratio(padded, packed), at_least(TARGET, CLOCK), cpu_ratio(padded, packed)]


def measure(options: argparse.Namespace) -> list[Table]:
    with TemporaryDirectory() as folder:
        write_shape(Path(folder), options)
        return [(measure_steps if options.ranks else measure_model)(Path(folder), options)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=int, nargs="+", default=[16])
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--width", type=int, default=256)
    made.add_argument("--steps", type=int, default=5)
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the models without --ranks")
    made.add_argument("--ranks", type=int, default=0, help="whole steps on so many ranks (default: a model in one process)")
    return made


if __name__ == "__main__":
    run(parser(), measure)
