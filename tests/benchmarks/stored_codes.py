"""What stored codes save: `python -m tests.benchmarks.stored_codes`.

Forward and backward of one micro-step's generate and understand passes of the tiny Emu3 of `tiny_emu3_sft.yaml` (random
weights, all trained, fp32), in one process: with pictures encoded in the pass, and with the stored codes of the same pictures.
The two take turns. Processor time, because other processes change the time on the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from data_prep.__main__ import main as data_prep
from megaunigame.data.conversation import caption_of, question_answers
from megaunigame.data.shards.index import ShardIndex
from megaunigame.evaluation.lockstep import read_sample
from megaunigame.models.emu3 import Emu3
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from megaunigame.tiny_world.emu3 import write_start
from tests.benchmarks.recording import Cell, Table, run, spread
from tests.benchmarks.step_cases import write_scenes

ENCODED, STORED = "encoded in the pass", "stored codes"


def plan(rows: int, pass_name: str, takes_source: bool) -> StepPlan:
    return plan_from([RowRequest("rows", pass_name, "s", rows, takes_source=takes_source)])


def seconds(model: Emu3, inputs: object) -> float:
    """Processor time of a forward and a backward."""
    started = time.process_time()
    model(inputs).loss_sum.sum().backward()
    taken = time.process_time() - started
    model.zero_grad()
    return taken


def measure(options: argparse.Namespace) -> list[Table]:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_scenes(home / "plain")
        write_start(home / "start", seed=0)
        given = [
            "annotate",
            str(home / "plain"),
            "--out",
            str(home / "coded"),
            "--tasks",
            "codes",
            "--model",
            str(home / "start"),
        ]
        if data_prep(given):
            raise SystemExit(1)
        model = Emu3.load(home / "start", max_length=320).train()
        index = ShardIndex.open(home / "coded")
        samples = [read_sample(index, position) for position in range(options.rows)]
    captions = [GenerateRow(caption_of(s) or "", s.image, target_codes=s.codes_of(s.image)) for s in samples]
    pixels = [
        GenerateRow("draw this image again .", s.image, s.image, target_codes=s.codes, source_codes=s.codes) for s in samples
    ]
    asked = [UnderstandRow(s.images, question_answers(s)[:1], codes=s.codes) for s in samples]
    lines: list[list[Cell]] = []
    for title, rows, kind, source in (
        ("generate, from captions", captions, GENERATE, False),
        ("generate, from the picture", pixels, GENERATE, True),
        ("understand, one question", asked, UNDERSTAND, True),
    ):
        collated = {}
        for case in (ENCODED, STORED):
            model.processor.accepted_codes = None
            if case == STORED:
                model.use_stored_codes(partial=False)
            given = [0] * len(rows), [""] * len(rows)
            collated[case] = model.processor.collate(plan(len(rows), kind, source), kind, rows, *given)
        taken: dict[str, list[float]] = {ENCODED: [], STORED: []}
        for number in range(options.rounds + 1):
            for case, inputs in collated.items():
                one = seconds(model, inputs)
                if number:
                    taken[case].append(one)
        medians = [statistics.median(taken[case]) for case in (ENCODED, STORED)]
        ratios = spread(stored / encoded for encoded, stored in zip(taken[ENCODED], taken[STORED], strict=True))
        lines.append([title, *(1000 * median for median in medians), ratios])
    return [Table(["pass", f"{ENCODED}, ms", f"{STORED}, ms", "ratio"], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=int, default=8, help="rows of a pass (default 8)")
    made.add_argument("--rounds", type=int, default=15, help="measured rounds, after one that is not (default 15)")
    return made


if __name__ == "__main__":
    run(parser(), measure)
