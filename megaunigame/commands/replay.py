"""Run the rows of a step whose update was skipped, or that stopped the run, again: one row at a time, in one process.

    megaunigame replay runs/tiny_sft
    megaunigame replay runs/tiny_sft --step 12
    megaunigame replay runs/tiny_sft/divergence/step-00000012 --broken
    megaunigame replay runs/tiny_sft --checkpoint runs/tiny_sft/checkpoints/step-00000010

Prints, for each row, its term, its sample, its loss, the norm of its gradient, and the first module whose output is not finite.
The weights are those of the newest checkpoint before that step, or those the run began with. No GPU is needed, for any number
of training ranks.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a run, or its divergence/step-... folder")
    parser.add_argument("--step", type=int, help="of a run's folder; default: its latest step with kept rows")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="step folder of the weights; default: see above")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="where the run's model.path is now, if it was moved")
    parser.add_argument("--broken", action="store_true", help="only rows whose loss was not finite in the run")


def run(options: argparse.Namespace) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"

    from megaunigame.diagnosis.rerun import rerun

    rerun(options.folder, options.step, checkpoint=options.checkpoint, model=options.model, only_broken=options.broken)
