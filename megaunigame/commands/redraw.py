"""Draw the depth, the segmentation, the edges or the pixels of given pictures with a model.

    megaunigame redraw runs/tiny_unimrg --pictures data/images --to depth --out depth
    megaunigame redraw models/Janus-Pro-7B --pictures one.png two.jpg --to segmentation --out segments
    megaunigame redraw models/Janus-Pro-7B --pictures one.png --to depth --prompt "Show how far away things are." --out depth

A model can draw what it was trained to (objectives unimrg and generation). The prompt is the one of its training, as far as
its run or its folder says. OUT gets the pictures, squares as the model draws them, and index.jsonl, as `megaunigame draw`.
The same command goes on after any end of the process with what is missing, on any number of GPUs. docs/inference.md
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    from megaunigame.inference.command_options import add_batch_option, add_model_options, add_settings
    from megaunigame.inference.settings import REDRAW_TEMPERATURE, DrawSettings

    add_model_options(parser)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, metavar="PATH", help="files, or folders of files")
    parser.add_argument("--to", required=True, metavar="NAME", help="pixel, depth, segmentation or edges")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--prompt", help="default: that of the training")
    parser.add_argument("--geometry", help="how pictures become squares: fit, squash or crop; default: as in the training")
    add_batch_option(parser)
    add_settings(parser, DrawSettings, temperature=REDRAW_TEMPERATURE)


def run(options: argparse.Namespace) -> None:
    from megaunigame.inference.command_options import check_batch, load_with, loading_of, settings_of, source_of
    from megaunigame.inference.drawing import redraw_files
    from megaunigame.inference.redraws import chosen
    from megaunigame.inference.settings import REDRAW_TEMPERATURE, DrawSettings

    check_batch(options)
    source = source_of(options)
    redraw_files(
        source,
        lambda: load_with(options, source, checked=True),  # by `run_job`
        pictures=options.pictures,
        to=options.to,
        how=chosen(options.to, source.redraws, options.prompt, options.geometry),
        out=options.out,
        settings=settings_of(options, DrawSettings, temperature=REDRAW_TEMPERATURE),
        loading=loading_of(options),
        batch=options.batch,
    )
