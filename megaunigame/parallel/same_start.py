"""Before a model is loaded: do all ranks run the same program, with the same packages and the same settings?"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import torch

from megaunigame.errors import ConfigError
from megaunigame.parallel.beats import spelled
from megaunigame.parallel.ranks import Ranks

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy", "safetensors", "triton", "liger-kernel")
"""Those whose versions decide what a step computes."""
SHOWN = 12
"""Characters of a hash."""


def facts_of_process(settings: Mapping[str, str]) -> dict[str, str]:
    """What must be the same on all ranks. `settings`: of the recipe, by key."""
    facts = {"the code of megaunigame": code_hash(Path(__file__).parents[1]), "Python": platform.python_version()}
    facts |= {name: _version(name) for name in PACKAGES}
    facts["torch"] = torch.__version__  # says for which CUDA, too
    return facts | dict(settings)


def code_hash(folder: Path) -> str:
    """Of the names and contents of all Python files in a package."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:SHOWN]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def check_same_start(world: Ranks, facts: Mapping[str, str]) -> None:
    """Collective. Raises ConfigError on every rank, naming what differs, and where.

    All settings of a thousand ranks are megabytes on each of them: they are told only where a hash of them differs.
    """
    number = int(hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:15], 16)
    smallest, largest = world.bounds([number])
    if smallest == largest:
        return
    everywhere: list[tuple[str, Mapping[str, str]]] = world.all_gather_object((socket.gethostname(), facts))
    differences = [line for key in _keys(f for _, f in everywhere) if (line := _difference(key, everywhere))]
    if differences:
        raise ConfigError(
            f"The ranks of this launch are not the same: {'; '.join(differences)}. Give every node the same folder of code, "
            "the same environment and the same command."
        )


def _keys(facts: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for of_rank in facts for key in of_rank))


def _difference(key: str, everywhere: list[tuple[str, Mapping[str, str]]]) -> str:
    """`torch is 2.8 on most ranks, 2.7 on rank 3 (node1)`; empty: the same everywhere."""
    values = [facts.get(key, "not set") for _, facts in everywhere]
    (usual, _), *others = Counter(values).most_common()
    parts = []
    for value, _ in others:
        ranks = [rank for rank, found in enumerate(values) if found == value]
        hosts = ", ".join(dict.fromkeys(everywhere[rank][0] for rank in ranks))
        parts.append(f"{value} on {spelled(ranks)} ({hosts})")
    first = values.index(usual)
    return f"{key} is {usual} on rank {first} ({everywhere[first][0]}), {', '.join(parts)}" if parts else ""
