"""What a run imports, imported at once: a process forked afterwards starts in no time."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import threading

LATER = (
    "megaunigame.evaluation.suites",
    "megaunigame.adversary",
    "megaunigame.representations",
    "megaunigame.objectives",
    "megaunigame.models",
    "megaunigame.data.sources",
    "megaunigame.tools",
)
"""Rooms that a run imports by name of its recipe or command."""
OF_OTHERS = (
    *("torch._dynamo", "torch.distributed.nn", "torch.utils.tensorboard", "matplotlib.pyplot", "open_clip", "webdataset"),
    *("deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.muon.muon_optimizer"),
    *("transformers.models.janus.modeling_janus", "transformers.models.janus.processing_janus", "peft.tuners.lora"),
)
"""What these rooms import when they are used."""


def import_all() -> None:
    """Every garbage collection of a fork leaves out what is here."""
    for room in LATER:
        for module in pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."):
            importlib.import_module(module.name)
    for name in OF_OTHERS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a thread would not survive the fork, and its locks would stay closed"
