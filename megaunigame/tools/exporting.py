"""An export with all that belongs into its folder: weights, settings, processor, licence, card."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from megaunigame.checkpoint.export import adapter_base, check_out, export_adapter, export_model, hub_id, in_transformers_layout
from megaunigame.checkpoint.hub import prepare_repository, push_folder
from megaunigame.checkpoint.runs import SavedRun, open_run, step_folder_of
from megaunigame.checkpoint.step_folders import BEST
from megaunigame.config import EMA
from megaunigame.errors import ConfigError
from megaunigame.inference.redraws import write_redraws
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
NOT_MEASURED = {
    False: "the best step was found with the average of the weights (evaluation.weights=ema), and the weights of the step "
    "are exported, which were not measured. To export the average, type --ema",
    True: "the best step was found with the weights of the step, and their average is exported, which was not measured. "
    "To export the weights, leave out --ema",
}
"""Of `--step best`, by whether the average is exported."""
TRAIN_ON = "To train on from them: `{setting}`."


def export(
    run_folder: Path,
    out: Path,
    *,
    step: int | str | None = None,
    dtype: str | None = None,
    adapter: bool = False,
    model: Path | None = None,
    base_id: str | None = None,
    averaged: bool = False,
    push_to: str | None = None,
) -> None:
    """Write the weights of a run into the new or empty folder `out`. One process, without a GPU.

    `step`: a number, or `best`; default, the newest checkpoint. `dtype`: of a whole model, default bfloat16. `adapter`: the
    LoRA adapters alone. `model`: where the run's model.path is now. `base_id`: id of the base on the model hub. `averaged`: the
    average of the weights. `push_to`: repository of the Hub (ORG/NAME) that the folder is uploaded to. Raises ConfigError for
    what does not fit together, and HubError.
    """
    check_out(out)
    run = open_run(step_folder_of(run_folder, step), model, averaged=averaged)
    family = find("models", run.recipe.model.family, UnifiedModel)
    if step == BEST and averaged != (run.recipe.evaluation.weights == EMA):
        print(f"warning: {NOT_MEASURED[averaged]}", file=sys.stderr)
    if adapter:
        if run.recipe.model.train != "lora":
            raise ConfigError(
                f"--adapter needs a run with model.train=lora; {run_folder} trained model.train={run.recipe.model.train}."
            )
        if dtype is not None:
            raise ConfigError("Adapters are always written in float32: leave out --dtype, or leave out --adapter.")
        base = adapter_base(run)
        named = base_id or hub_id(base) or str(base)
        if family.in_transformers and not base_id and not in_transformers_layout(family, base):
            print(
                f"warning: PEFT loads a base in the Hugging Face layout, and {base} is not: name one with --base-id",
                file=sys.stderr,
            )
        license_files(base)
        if push_to:
            prepare_repository(push_to, named)
        size = export_adapter(family, run, out, named)
        usage = adapter_usage(family, str(out), named)
    else:
        base = run.model_path
        license_files(base)
        if push_to:
            prepare_repository(push_to)
        size = export_model(family, run, out, getattr(torch, dtype or "bfloat16"))
        usage = family.usage(str(out), str(out))
    write_redraws(out, run.model_path, run.recipe)
    describe(run, out, family, base, base_id, "adapters" if adapter else "model", usage)
    print(f"{out}: {size:,} bytes of weights from {run.step_folder}")
    if push_to:
        print(f"uploading {out} to {push_to}: its README.md has the recipe and the command of the run, with all paths and URLs")
        print(f"uploaded: {push_folder(out, push_to, f'{run.recipe.name}, step {run.step}')}")


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
        averaged=run.averaged,
    )
    recipe = OmegaConf.to_container(OmegaConf.structured(run.recipe))
    write_card(out, read_run_folder(run.folder), recipe, facts)  # type: ignore[arg-type]
