"""The model folder a plan is made from: the recipe's own, or one of a published size."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megaunigame.config import ModelConfig
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel


@contextlib.contextmanager
def model_folder(config: ModelConfig, family: type[UnifiedModel]) -> Iterator[str]:
    """`model.path` where it exists, else a temporary folder of `model.size`.

    Raises ConfigError when there is neither, and ModelError for a size the family does not have.
    """
    if Path(config.path).is_dir():
        yield config.path
        return
    if not config.size:
        raise ConfigError(
            f"No model folder at model.path={config.path}, and the recipe names no size to plan with. Give another model.path, "
            f"or type model.size=NAME; the family {config.family!r} has {', '.join(family.sizes()) or 'no sizes'}."
        )
    with tempfile.TemporaryDirectory() as folder:
        family.write_size(config.size, Path(folder))
        yield folder
