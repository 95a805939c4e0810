"""What it costs to measure attention: a training step of a narrow language model, plain, tapped in every layer, and eager with
every map kept. The rows are those of a generate pass: the last 575 of 1576 positions ask how much they look at the text.

    python -m tests.benchmarks.attention_taps [--lengths 256 576 1576 3000] [--layers 30] [--width 512] [--repeats 5]

Time is CPU time of the step (the machine may have other work), as ratio of medians to the plain step, the variants taking
turns in one process. Peak memory is measured in another process for each variant, above that of the loaded model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaModel

from megaunigame.attention import taps as attention_taps
from megaunigame.attention.queries import drawn_tokens
from megaunigame.attention.taps import Tap
from megaunigame.attention.targets import table
from megaunigame.objectives.aia.player import attention_loss
from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE
from tests.benchmarks.recording import Cell, Table, at_most, run

VARIANTS = ("base", "tapped", "eager")
HEAD = 64
TIME, MEMORY = "time / base", "memory / base"
AIMED_AT, MOST_TIME, MOST_MEMORY = 1576, 1.10, 1.05
"""The length at which the design has limits for tapped steps, and these."""


def language_model(width: int, layers: int, attention: str) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=width // HEAD, attn_implementation=attention, use_cache=False,
    )  # fmt: skip
    model = LlamaModel(config)
    if attention == "sdpa":
        attention_taps.install(model)
    return model.train()


class Step:
    """Forward and backward of one row of `length` positions."""

    def __init__(self, model: LlamaModel, length: int):
        self.model, self.layers = model, len(model.layers)
        self.embeds = torch.randn(1, length, model.config.hidden_size)
        asking = length - length * 575 // 1576
        self.queries = drawn_tokens(range(asking, length), 1, 0, torch.device("cpu"))
        self.picture = torch.arange(length).unsqueeze(0) >= asking
        self.text = ~self.picture
        self.first = torch.arange(length).unsqueeze(0) == 0
        self.layer_targets = table("relative", self.layers)[GENERATE]

    def __call__(self, variant: str) -> None:
        self.model.zero_grad()
        loss = torch.zeros(())
        if variant == "eager":
            output = self.model(inputs_embeds=self.embeds, output_attentions=True)
            shares = torch.stack([a[:, :, self.picture[0]][..., self.text[0]].sum(-1).mean((1, 2)) for a in output.attentions])
            loss = attention_loss(shares, self.layer_targets).sum()
        elif variant == "tapped":
            tap = Tap(Taps(tuple(range(self.layers))), self.queries, self.text, self.first)
            output = self.model(inputs_embeds=self.embeds, tap=tap)
            loss = attention_loss(tap.shares().keys, self.layer_targets).sum()
        else:
            output = self.model(inputs_embeds=self.embeds)
        (output.last_hidden_state.square().mean() + loss).backward()


def peak(variant: str, length: int, width: int, layers: int) -> float:
    """MiB that one step takes above the loaded model with its gradients. For a process that does nothing else."""
    torch.set_num_threads(1)
    step = Step(language_model(width, layers, "eager" if variant == "eager" else "sdpa"), length)
    Step(step.model, 32)(variant)  # gradients and buffers of the libraries exist from here on
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    before = resident("VmRSS")
    step(variant)
    return resident("VmHWM") - before


def resident(mark: str) -> float:
    """MiB of this process's memory: at present (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(mark)) / 1024


def seconds(length: int, width: int, layers: int, repeats: int, variants: list[str]) -> dict[str, float]:
    """Median CPU seconds of a step."""
    steps = {v: Step(language_model(width, layers, "eager" if v == "eager" else "sdpa"), length) for v in variants}
    times: dict[str, list[float]] = {v: [] for v in variants}
    for repeat in range(repeats + 1):
        for variant in variants:
            start = time.process_time()
            steps[variant](variant)
            if repeat:  # the first is a warm-up
                times[variant].append(time.process_time() - start)
    return {v: statistics.median(t) for v, t in times.items()}


def measure(options: argparse.Namespace) -> list[Table]:
    torch.set_num_threads(1)
    lines: list[list[Cell]] = []
    for length in options.lengths:
        times = seconds(length, options.width, options.layers, options.repeats, options.variants)
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {v: pool.apply(peak, (v, length, options.width, options.layers)) for v in options.variants}
        for v in options.variants:
            has_aims = (v, length) == ("tapped", AIMED_AT)
            aims = [at_most(MOST_TIME, TIME), at_most(MOST_MEMORY, MEMORY)] if has_aims else [None, None]
            in_time, in_memory = times[v] / times["base"], peaks[v] / peaks["base"]
            lines.append([length, v, times[v], in_time, aims[0], peaks[v], in_memory, aims[1]])
    return [Table(["length", "way", "CPU s", TIME, "aim in time", "peak MiB", MEMORY, "aim in memory"], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--lengths", type=int, nargs="+", default=[256, 576, 1576, 3000])
    made.add_argument("--layers", type=int, default=30)
    made.add_argument("--width", type=int, default=512)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--variants", nargs="+", default=list(VARIANTS))
    return made


if __name__ == "__main__":
    run(parser(), measure)
