"""Draw pictures of the texts of a file with a model.

    megaunigame draw runs/tiny_sft --prompts prompts.txt --out pictures
    megaunigame draw models/Janus-Pro-7B --prompts prompts.jsonl --per-prompt 4 --out pictures --batch 16
    torchrun --nproc_per_node 8 -m megaunigame draw models/Janus-Pro-7B --prompts prompts.txt --out pictures

A file .txt has a prompt a line, a file .jsonl an object a line: {"id": "a1", "prompt": "a red cube"}. OUT gets the pictures,
and index.jsonl with the prompt and the file of each, or its "error" (exit code 2, after all others are drawn). What is random
in a picture depends on --seed, the id of its prompt and its number alone; outside float32, and where codes are not drawn one by
one (Show-o, OpenUni, Harmon, BLIP3o-NEXT, BAGEL), another --batch may change it by rounding. The same command goes on after any
end of the process with what is missing, on any number of GPUs. docs/inference.md
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    from megaunigame.inference.command_options import add_batch_option, add_model_options, add_settings
    from megaunigame.inference.settings import DrawSettings

    add_model_options(parser)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help=".txt or .jsonl")
    parser.add_argument("--per-prompt", type=int, default=1, metavar="N", help="pictures of each prompt; default 1")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    add_batch_option(parser)
    add_settings(parser, DrawSettings, guidance="what the model folder names, else that of the family's release")


def run(options: argparse.Namespace) -> None:
    from megaunigame.errors import ConfigError
    from megaunigame.inference.command_options import check_batch, load_with, loading_of, settings_of, source_of
    from megaunigame.inference.drawing import draw_file
    from megaunigame.inference.loading import default_guidance
    from megaunigame.inference.settings import DrawSettings

    check_batch(options)
    if options.per_prompt < 1:
        raise ConfigError(f"--per-prompt must be 1 or more; got {options.per_prompt}.")
    source = source_of(options)
    draw_file(
        source,
        lambda: load_with(options, source, checked=True),  # by `run_job`
        prompts=options.prompts,
        per_prompt=options.per_prompt,
        out=options.out,
        settings=settings_of(options, DrawSettings, guidance=default_guidance(source)),
        loading=loading_of(options),
        batch=options.batch,
    )
