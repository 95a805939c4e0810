"""Rank program: a run on shards with stored codes makes the same steps as one that encodes its pictures.

python -m tests.multi_process.stored_codes HOME CASE...     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

from pathlib import Path

from data_prep.__main__ import main as data_prep
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.registry import find
from tests.multi_process.programs import LORA, PLAYED, TWICE, ZERO2, batches_of, play, trainer_of
from tests.multi_process.tiny_run import FOLDERS

STEPS = 3
BOUND = 1e-5
"""Relative, of losses and gradient norms. Reached: 0 to 2e-7, because other batches are encoded."""
DRAWN = {"generation": {"caption_rows": 1, "pixel_rows": 2, "drop": 0.3, "pixel_geometry": "fit"}}
ASKED = {"understanding": {"rows": 2}}
CASES: dict[str, dict] = {
    "emu3": {"objectives": ASKED | DRAWN, "batch": TWICE},
    "emu3_zero2_lora": {"objectives": ASKED | DRAWN, "engine": ZERO2, "model": LORA},
    "emu3_mixed": {"objectives": ASKED | DRAWN},
    "emu3_game": {"objectives": {"unigame": {**PLAYED, "pictures_every": 0}}},
    "janus": {"objectives": ASKED | DRAWN, "batch": TWICE},
    "janus_game": {"objectives": {"unigame": {**PLAYED, "pictures_every": 0}}},
    **{family: {"objectives": ASKED | DRAWN} for family in ("chameleon", "emu3_5", "show_o")},
}
VARIANTS = ("zero2_lora", "mixed", "game")
"""What follows the family in the name of a case."""


def coded_shards(family: str, home: Path, world: Ranks) -> Path:
    """The shards of `home` with the codes of a family; rank 0 makes them."""
    out = home / f"coded-{family}"
    if world.is_main and not out.exists():
        model = ("--model", str(home / FOLDERS[family]), "--family", family)
        assert data_prep(["annotate", str(home / "shards"), "--out", str(out), "--tasks", "codes", *model]) == 0
    world.barrier()
    return out


def steps(name: str, home: Path, world: Ranks, settings: dict, data: dict) -> tuple[list[dict], int]:
    """Metrics of each step, and the pictures that this rank encoded in them."""
    trainer = trainer_of(name, home, world, data={"train": data}, **settings)
    tokenizer, encoded = trainer.learner.module.frozen.module, []
    encode = tokenizer.encode
    tokenizer.encode = lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    batches = batches_of(trainer, STEPS)
    return [trainer.train_step(batches) for _ in range(STEPS)], sum(encoded)


def run(case: str, settings: dict, home: Path, world: Ranks) -> str:
    family = next((case.removesuffix(f"_{variant}") for variant in VARIANTS if case.endswith(f"_{variant}")), case)
    reads_codes = find("models", family, UnifiedModel).reads_codes
    settings = {**settings, "model": {"family": family, "path": str(home / FOLDERS[family]), **settings.get("model", {})}}
    coded = {"shards": str(coded_shards(family, home, world)), "window": 2}
    plain = {"shards": str(home / "shards"), "window": 2}
    if case.endswith("mixed"):  # ranks encode other numbers of rows
        coded, plain = {"mix": {"a": coded, "b": plain}}, {"mix": {"a": plain, "b": plain}}
    off = {**settings, "model": {**settings["model"], "stored_codes": "off"}}
    expected, all_pictures = steps(f"codes-{case}-plain", home, world, off, plain)
    found, pictures = steps(f"codes-{case}", home, world, settings, coded)
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        compared = [name for name in theirs if name.startswith("loss/")] + [names.OPTIM_GRAD_NORM]
        worst = max(worst, *(abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-6) for name in compared))
        drawn = [term for term in ("caption", "pixel", "clean") if names.rows(term, "filled") in ours]
        for term in drawn if reads_codes else drawn[:2]:
            with_codes, filled = ours[names.rows(term, "coded")], ours[names.rows(term, "filled")]
            assert theirs[names.rows(term, "coded")] == 0
            assert case.endswith("mixed") or term == "clean" and not reads_codes or with_codes == filled, (term, ours)
    assert worst < BOUND, worst
    counts = world.all_gather_object((pictures, all_pictures))
    assert all(some < every for some, every in counts), counts
    if not case.endswith(("mixed", "game")):
        assert all(some == 0 for some, _ in counts), counts
    return f"relative difference {worst:.1e}; pictures encoded by each rank, with codes and without: {counts}"


if __name__ == "__main__":
    play(run, CASES, {})
