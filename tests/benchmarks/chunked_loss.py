"""Memory and time of the loss on a large vocabulary: `python -m tests.benchmarks.chunked_loss`.

Forward and backward of the token head and its cross-entropy, plain and by slices of the vocabulary, each in another
process. Memory is the largest resident size above that before the first product; the gradient of the head's weight is in it,
and grows with the width, which is narrow here so that the logits show.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal.head import TokenHead
from tests.benchmarks.attention_taps import resident
from tests.benchmarks.recording import Cell, Table, at_most, run

TARGET = 0.25
"""Largest ratio of the memories that the design allows."""
MEMORY = "memory, sliced / plain"


def plain(head: TokenHead, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), labels, reduction="none")


def sliced(head: TokenHead, hidden: Tensor, labels: Tensor) -> Tensor:
    return head(hidden, labels).losses


VARIANTS: dict[str, Callable[[TokenHead, Tensor, Tensor], Tensor]] = {"plain": plain, "sliced": sliced}


def one(variant: str, width: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """MiB above the base, processor seconds, mean loss. For a process that does nothing else."""
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    head = TokenHead(width, options.vocabulary).to(dtype)
    hidden = torch.randn(options.positions, width, dtype=dtype, requires_grad=True)
    labels = torch.randint(options.vocabulary, (options.positions,))
    plain(head, hidden[:2], labels[:2]).sum().backward()  # libraries loaded, gradients allocated
    base, start = resident("VmHWM"), time.process_time()
    losses = VARIANTS[variant](head, hidden, labels)
    losses.sum().backward()
    seconds = time.process_time() - start
    return resident("VmHWM") - base, seconds, losses.mean().item()


def measure(options: argparse.Namespace) -> list[Table]:
    lines: list[list[Cell]] = []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for width in options.width:
            memory, seconds, losses = zip(*(pool.apply(one, (variant, width, options)) for variant in VARIANTS), strict=True)
            torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
            lines.append([width, *memory, memory[1] / memory[0], at_most(TARGET, MEMORY), seconds[1] / seconds[0]])
    columns = ["width", "plain, MiB", "sliced, MiB", MEMORY, "aim", "processor time, sliced / plain"]
    return [Table(columns, lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.chunked_loss", description=__doc__)
    made.add_argument("--positions", type=int, default=4096)
    made.add_argument("--vocabulary", type=int, default=184_622, help="default: that of Emu3")
    made.add_argument("--width", type=int, nargs="+", default=[64])
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return made


if __name__ == "__main__":
    run(parser(), measure)
