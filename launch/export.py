"""Turn a checkpoint into a model folder that Hugging Face and this project load, or into a PEFT adapter.

    python launch/export.py runs/tiny_sft --out exported/tiny_sft --dtype bfloat16
    python launch/export.py runs/tiny_sft --out exported/adapter --adapter
    python launch/export.py runs/tiny_sft --step 30 --out exported/step_30

One process, no GPU, for any number of training ranks. Its use in transformers: README.md of the new folder, docs/exporting.md.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from omegaconf import OmegaConf

from megaunigame.checkpoint.export import adapter_base, check_out, export_adapter, export_model, hub_id, in_transformers_layout
from megaunigame.checkpoint.runs import SavedRun, open_run, step_folder_of
from megaunigame.errors import ConfigError
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.model_card import Export, license_files, write_card
from megaunigame.registry import find

ADAPTER_USE = """\
```python
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor

processor = AutoProcessor.from_pretrained({folder})
model = PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained({base}), {folder})
```

"""
ADAPTER_WITHOUT_CLASS = """\
transformers has no class for this model, so PEFT cannot load the adapters. Export the run without `--adapter` for a whole
model.

"""
TRAIN_ON = "To train on from them: `{setting}`."


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    parser.add_argument("run", type=Path, help="run folder (holds recipe.yaml and checkpoints/)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--step", type=int, help="default: the newest checkpoint")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of a model folder, default bfloat16; adapters are float32"
    )
    parser.add_argument("--adapter", action="store_true", help="write the LoRA adapters alone")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="where the run's model.path is now, if it was moved")
    parser.add_argument(
        "--base-id", metavar="ID", help="id of the base on the model hub, for adapters and the card; default: its absolute path"
    )
    options = parser.parse_args(arguments)

    check_out(options.out)
    run = open_run(step_folder_of(options.run, options.step), options.model)
    family = find("models", run.recipe.model.family, UnifiedModel)
    if options.adapter:
        if run.recipe.model.train != "lora":
            raise ConfigError(
                f"--adapter needs a run with model.train=lora; {options.run} trained model.train={run.recipe.model.train}."
            )
        if options.dtype is not None:
            raise ConfigError("Adapters are always written in float32: leave out --dtype, or leave out --adapter.")
        base = adapter_base(run)
        named = options.base_id or hub_id(base) or str(base)
        if family.in_transformers and not options.base_id and not in_transformers_layout(family, base):
            print(
                f"warning: PEFT loads a base in the Hugging Face layout, and {base} is not: name one with --base-id",
                file=sys.stderr,
            )
        license_files(base)
        size = export_adapter(family, run, options.out, named)
        usage = adapter_usage(family, str(options.out), named)
    else:
        base = run.model_path
        license_files(base)
        size = export_model(family, run, options.out, getattr(torch, options.dtype or "bfloat16"))
        usage = family.usage(str(options.out), str(options.out))
    describe(run, options.out, family, base, options.base_id, "adapters" if options.adapter else "model", usage)
    print(f"{options.out}: {size:,} bytes of weights from {run.step_folder}")


def adapter_usage(family: type[UnifiedModel], folder: str, base: str) -> str:
    """Markdown; the names in its code are literals of Python."""
    literals = {name: json.dumps(value, ensure_ascii=False) for name, value in (("folder", folder), ("base", base))}
    use = ADAPTER_USE.format(**literals) if family.in_transformers else ADAPTER_WITHOUT_CLASS
    return use + TRAIN_ON.format(setting=shlex.quote(f"model.adapter={folder}"))


def describe(
    run: SavedRun, out: Path, family: type[UnifiedModel], base: Path, base_id: str | None, what: str, usage: str
) -> None:
    """Write the model card, and say what transformers would do differently."""
    differences = family.differences(str(out)) if what == "model" else []
    for line in differences:
        print(f"warning: transformers' processor makes other token ids than ours: {line}", file=sys.stderr)
    if not family.in_transformers:
        print(f"note: transformers has no class for {family.name}; {out} is read by this project only", file=sys.stderr)
    facts = Export(
        step=run.step,
        what=what,
        base_folder=base,
        base_id=base_id or hub_id(base),
        usage=usage,
        in_transformers=family.in_transformers,
        differences=differences,
    )
    recipe = OmegaConf.to_container(OmegaConf.structured(run.recipe))
    write_card(out, read_run_folder(run.folder), recipe, facts)  # type: ignore[arg-type]


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
