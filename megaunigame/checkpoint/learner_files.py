"""Files of the learner in a step folder: one per rank, and one that says which rank has which elements.

    learner-rank-00000.safetensors    1-D float32 slices `master/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` of rank 0, and
                                      `ema/NAME` where an average of the weights is kept
    learner.json                      format, ranks, updates, and two numbers per parameter (`SavedLearner`)

A rank reads the elements that it owns now, whichever ranks and ZeRO stage wrote them. Frozen weights are never written: they
are reloaded from the model folder. Settings of the optimizer are those of the recipe, so a learning rate, weight decay or
factor of a group that was changed on resume holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from megaunigame.checkpoint.agreement import on_every_rank
from megaunigame.checkpoint.host_memory import host_copies
from megaunigame.checkpoint.saved_learner import DESCRIPTION, FILE, FORMAT, SavedLearner, as_json
from megaunigame.engine.optimizer_slices import Layout, OptimizerSlices
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError
from megaunigame.storage.pending import PendingFile

log = logging.getLogger(__name__)


def pending_files(learner: Learner) -> list[PendingFile]:
    """The files of this rank, copied to the host: the learner may go on. Not a collective."""
    slices, world = OptimizerSlices(learner), learner.world
    kinds = [(parts, slices.tensors(master)) for master, parts in slices.flats]
    copies = iter(host_copies([flat for _, flats in kinds for flat in flats.values()]))
    tensors: dict[str, Tensor] = {}
    for parts, flats in kinds:
        for kind, copy in zip(flats, copies, strict=False):  # `copies` goes on with the next flat tensor
            tensors |= {f"{kind}/{part.name}": part.of(copy) for part in parts if part.elements}
    about = {"format": str(FORMAT), "rank": str(world.rank), "ranks": str(world.size)}
    files = [PendingFile(FILE.format(world.rank), tensors, about)]
    if world.is_main:
        content = as_json(world.size, slices.updates(), slices.layouts, averaged=learner.ema is not None)
        files.append(PendingFile(DESCRIPTION, content=content.encode()))
    return files


def load(learner: Learner, folder: Path) -> None:
    """Collective: set master weights, moments and counters to those of a step folder, and the weights of the model with them.

    Raises CheckpointError on every rank, before anything is changed, when the checkpoint trained other parameters, or when a
    file that some rank needs is missing or is not what learner.json says.
    """
    slices, world = OptimizerSlices(learner), learner.world
    opened: list[SavedLearner] = []

    def check() -> None:
        saved = SavedLearner(folder)
        check_parameters(saved, slices.layouts)
        saved.check_slices((part.name, part.elements) for _, parts in slices.flats for part in parts)
        opened.append(saved)

    on_every_rank(world, check)
    slices.reset(opened[0].updates)
    on_every_rank(world, lambda: _read(opened[0], slices))
    if learner.ema is not None and not opened[0].averaged:
        learner.ema.restart()
    slices.publish()
    if world.is_main and opened[0].averaged != (learner.ema is not None):
        log.warning(
            "%s",
            f"{folder} has an average of the weights, which is dropped: ema.decay is 0."
            if opened[0].averaged
            else f"{folder} has no average of the weights: it begins with them as they are there.",
        )


def check_parameters(saved: SavedLearner, trained: Mapping[str, Layout]) -> None:
    """Raise CheckpointError unless the saved run trained exactly these parameters, in the same shapes."""
    lacking, odd = sorted(set(trained) - set(saved.layouts)), sorted(set(saved.layouts) - set(trained))
    common = sorted(set(trained) & set(saved.layouts))
    reshaped = [name for name in common if trained[name].shape != saved.layouts[name].shape]
    problems = [
        f"{len(names)} {what}, such as {names[0]}"
        for names, what in ((lacking, "are not in it"), (odd, "are not trained here"), (reshaped, "have other shapes there"))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{saved.folder} belongs to another model or to other trained groups: of its {len(saved.layouts)} parameters and "
            f"the {len(trained)} of this run, {'; '.join(problems)}. Use the recipe it was saved with, give another "
            "`output`, or type checkpoint.resume=never."
        )


def _read(saved: SavedLearner, slices: OptimizerSlices) -> None:
    for master, parts in slices.flats:
        for kind, flat in slices.tensors(master).items():
            for part in parts:
                if part.elements and kind in saved.kinds:
                    saved.read_into(part.of(flat), kind, part.name, part.elements)


def signature(learner: Learner) -> str:
    """Hash of names and whole shapes of the trained parameters: the same at any number of ranks and ZeRO stage."""
    shapes = {n: getattr(p, "ds_shape", p.shape) for n, p in learner.module.named_parameters() if p.requires_grad}
    return hashlib.sha256(json.dumps(sorted((n, list(s)) for n, s in shapes.items())).encode()).hexdigest()
