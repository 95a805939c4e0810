"""Train what joint training of the tiny world starts from: tokenizers, vision tower, oracle, CLIP and the start folder.

    python launch/tiny_world.py --stage all --data scenes --out tiny
    python launch/tiny_world.py --stage vq --data scenes --out tiny --steps 2400

`--data` holds `train` and `val` folders of `megaunigame prepare scenes`; CLIP is also measured on the pairs of an
`adversarial` folder, if there is one. A training that was interrupted continues.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from megaunigame.launching import options_of, run_to_exit
from megaunigame.tiny_world.parts import PARTS, PartSettings, make_part


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    parser.add_argument("--stage", required=True, choices=[*PARTS, "all"])
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val scenes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of a training; default: as in tiny_world/parts.py")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    settings = PartSettings(options.data, options.out, options.seed, options.steps)
    for part in PARTS if options.stage == "all" else (options.stage,):
        print(f"{part}: {json.dumps(make_part(part, settings))}", flush=True)


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
