"""What torch.compile makes of the layers under ZeRO-2 and under ZeRO-3: graphs, what ends them, and time.

    python -m tests.benchmarks.compiled [--stage 2] [--backend aot_eager] [--width 32] [--steps 8]

A tiny Janus in one process, twice: plain, and with compiled layers, which a recipe refuses under ZeRO-3. Each step reads
understand rows of another length, forward, backward and update. Times are medians of CPU seconds of the second half of the
steps; losses and gradient norms are compared in every step. `aot_eager` makes graphs and no code; `inductor` makes code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch._dynamo.utils import counters

from megaunigame.engine import zero3
from megaunigame.engine.compiling import INDUCTOR, CompiledLayers
from megaunigame.engine.zero3 import Learner
from megaunigame.parallel.ranks import start_world
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import UnderstandRow
from tests.engine.learners import learner_of
from tests.models.shared import understand
from tests.multi_process.tiny_run import write_model

ROWS = 4
PLAN = plan_from([RowRequest("u", UNDERSTAND, "train", ROWS)])
PICTURE = torch.zeros(3, 16, 16, dtype=torch.uint8)


def step(learner: Learner, words: int) -> tuple[float, float, float]:
    """Loss, gradient norm and CPU seconds of a step with answers of so many words."""
    began = time.process_time()
    rows = (UnderstandRow([PICTURE], [("what ?", "a ball " * (words + number))]) for number in range(ROWS))
    loss = learner.forward(understand(learner.module, *rows)).loss_sum.sum()
    learner.backward(loss)
    learner.update()
    return loss.item(), learner.grad_norm(), time.process_time() - began


def main(options: argparse.Namespace) -> None:
    world = start_world(1)
    zero3.CompiledLayers = partial(CompiledLayers, backend=options.backend)  # type: ignore[misc, assignment]
    with TemporaryDirectory() as folder:
        home = Path(folder)
        write_model(home / "model", width=options.width)
        learners = [
            learner_of(home, world, PLAN, options.stage, "fp32", engine={"compile": compile})[0]
            for compile in ("none", "layers")
        ]
        plain, compiled = ([step(learner, 1 + number) for number in range(options.steps)] for learner in learners)
    layers = learners[1].compiled
    assert layers is not None
    apart = [max(abs(a - b) / abs(a) for a, b in zip(p[:2], c[:2], strict=True)) for p, c in zip(plain, compiled, strict=True)]
    times = [statistics.median(seconds for *_, seconds in results[options.steps // 2 :]) for results in (plain, compiled)]
    number = len(learners[1].module.layers())
    print(f"ZeRO-{options.stage}, {options.backend}, {number} layers of width {options.width}, {options.steps} steps:")
    print(f"  {layers.graphs} graphs, ended in {sum(counters['graph_break'].values())} places")
    print(f"  compiled too often: {'yes' if layers.has_hit_limit else 'no'}")
    print(f"  losses and gradient norms differ by {max(apart):.1e} at most, relative")
    print(f"  first step {compiled[0][2]:.1f} CPU s, later steps {times[1]:.3f} CPU s, plain ones {times[0]:.3f} CPU s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compiled")
    parser.add_argument("--stage", type=int, choices=(2, 3), default=2)
    parser.add_argument("--backend", choices=("aot_eager", INDUCTOR), default="aot_eager")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    main(parser.parse_args())
    sys.exit(0)
