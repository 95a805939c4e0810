"""Post-training of unified multimodal models: one network that understands pictures and generates them.

    model = megaunigame.load(FOLDER)           a model folder, an adapter, or a run
    model.ask(picture, "What is left of the cube ?")
    model.draw("a red cube left of a blue ball")
    model.redraw(picture, "depth")
    megaunigame.train("tiny_sft", schedule={"steps": 20})

What takes seconds to import is imported by the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "train"]

if TYPE_CHECKING:
    from megaunigame.inference.loading import load
    from megaunigame.tools.train_from_python import train

FROM = {"load": "megaunigame.inference.loading", "train": "megaunigame.tools.train_from_python"}
"""Name -> the module that it is imported from when it is first used."""


def __getattr__(name: str) -> Any:
    if name in FROM:
        from importlib import import_module

        return getattr(import_module(FROM[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *FROM])
