"""Memory and time of the loss on a large vocabulary: `python -m tests.benchmarks.chunked_loss`.

Forward and backward of the token head and its cross-entropy, plain and by slices of the vocabulary, each in another
process. Memory is the largest resident size above that before the first product; the gradient of the head's weight is in it,
and grows with the width, which is narrow here so that the logits show.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal.head import TokenHead
from tests.benchmarks.attention_taps import resident

TARGET = 0.25
"""Largest ratio of the memories that the design allows."""


def plain(head: TokenHead, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), labels, reduction="none")


def sliced(head: TokenHead, hidden: Tensor, labels: Tensor) -> Tensor:
    return head(hidden, labels).losses


VARIANTS: dict[str, Callable[[TokenHead, Tensor, Tensor], Tensor]] = {"plain": plain, "sliced": sliced}


def measure(variant: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """MiB above the base, processor seconds, mean loss. For a process that does nothing else."""
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    head = TokenHead(options.width, options.vocabulary).to(dtype)
    hidden = torch.randn(options.positions, options.width, dtype=dtype, requires_grad=True)
    labels = torch.randint(options.vocabulary, (options.positions,))
    plain(head, hidden[:2], labels[:2]).sum().backward()  # libraries loaded, gradients allocated
    base, start = resident("VmHWM"), time.process_time()
    losses = VARIANTS[variant](head, hidden, labels)
    losses.sum().backward()
    seconds = time.process_time() - start
    return resident("VmHWM") - base, seconds, losses.mean().item()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chunked_loss", description=__doc__)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=184_622, help="default: that of Emu3")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    memory = {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for variant in VARIANTS:
            memory[variant], seconds, loss = pool.apply(measure, (variant, options))
            print(f"{variant:<8} {memory[variant]:9.0f} MiB  {seconds:7.2f} s  mean loss {loss:.6f}", flush=True)
    ratio = memory["sliced"] / memory["plain"]
    print(f"memory {ratio:.3f} of the plain loss (target: at most {TARGET})")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
