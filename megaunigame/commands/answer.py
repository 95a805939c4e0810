"""Answer the questions of a file with a model.

    megaunigame answer runs/tiny_sft --in questions.jsonl --out answers.jsonl
    megaunigame answer models/Janus-Pro-7B --in questions.jsonl --image-root data/images --out answers.jsonl --batch 32
    torchrun --nproc_per_node 8 -m megaunigame answer models/Janus-Pro-7B --in questions.jsonl --out answers.jsonl

A line of the input is one question, about no picture, one or several:

    {"id": "a1", "image": "one.png", "question": "What is left of the cube ?"}
    {"images": ["one.png", "two.png"], "conversations": [{"from": "human", "value": "<image>\\n<image>\\nCompare them."}]}

Its line in the output has the same fields, and "answer"; "cut" where --max-tokens ended the answer; "error" where a question or
a picture cannot be used (exit code 2, after all others are answered). The same command goes on after any end of the process
with what is missing, on any number of GPUs. docs/inference.md
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    from megaunigame.inference.command_options import add_batch_option, add_model_options, add_settings
    from megaunigame.inference.settings import AnswerSettings

    add_model_options(parser)
    parser.add_argument("--in", dest="questions", type=Path, required=True, metavar="FILE", help="JSON lines")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines, in the order of the input")
    parser.add_argument("--image-root", type=Path, metavar="FOLDER", help="of the pictures; default: the folder of the input")
    add_batch_option(parser)
    add_settings(parser, AnswerSettings)


def run(options: argparse.Namespace) -> None:
    from megaunigame.inference.answering import answer_file
    from megaunigame.inference.command_options import check_batch, load_with, loading_of, settings_of, source_of
    from megaunigame.inference.settings import AnswerSettings

    check_batch(options)
    settings, source = settings_of(options, AnswerSettings), source_of(options)
    answer_file(
        source,
        lambda: load_with(options, source, checked=True),  # by `run_job`
        questions=options.questions,
        out=options.out,
        image_root=options.image_root or options.questions.parent,
        settings=settings,
        loading=loading_of(options),
        batch=options.batch,
    )
