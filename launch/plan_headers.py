"""Plan the configurations in the headers of recipes, and write the results there.

    python launch/plan_headers.py launch/recipes/openuni_38b_unimrg.yaml
    python launch/plan_headers.py launch/recipes/janus_pro_7b_*.yaml --check

A header names its configurations in lines `# plan --nodes 4 model.train=full`; a recipe without one gets `# plan --nodes 1`.
The shape is that of model.size, whatever lies at model.path. --check writes nothing, and fails when a header is not what would
be written: after a change of the planner or of a family. A configuration takes half a minute to seven minutes.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # a plan is made on the host, with or without GPUs

from megaunigame.errors import ConfigError
from megaunigame.launching import options_of, run_to_exit
from megaunigame.planning.header import Header


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    parser.add_argument("recipes", nargs="+", type=Path, metavar="recipe", help="YAML file, see launch/recipes/")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a header would change")
    options = parser.parse_args(arguments)

    headers = [Header(recipe) for recipe in options.recipes]
    changed = []
    for header in headers:
        text = header.planned(partial(print, file=sys.stderr, flush=True))
        if text != header.text:
            changed.append(header.path.as_posix())
            if not options.check:
                header.path.write_text(text)
    if options.check and changed:
        raise ConfigError(f"Other plans than in the headers. Type: python launch/plan_headers.py {' '.join(changed)}")
    print(f"{len(changed)} of {len(headers)} headers changed")


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
