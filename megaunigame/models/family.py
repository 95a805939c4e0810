"""Base class of families: building and loading from a model folder.

A family is a folder next to this file: `model.py` (the network and its two passes), `keys.py` (names in its checkpoints),
`configuration.py` (its config.json), and its sequences (`conversation.py`, `processor.py`).
"""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from megaunigame.models.base import Processor, UnifiedModel
from megaunigame.models.text.processor import RowProcessor
from megaunigame.models.text.processor_check import differences
from megaunigame.models.weights.frozen import Frozen
from megaunigame.models.weights.loading import check_names, check_shapes, load_whole
from megaunigame.models.weights.renamed import KeyTable, RenamedWeights
from megaunigame.models.weights.settings_files import MODEL_SETTINGS, copy_settings
from megaunigame.models.weights.tensor_files import TensorFiles

MAX_LENGTH = 2048
"""Longest row of a processor that only its settings are asked of."""
F = TypeVar("F", bound="Family")


class Family(UnifiedModel):
    """A model whose trained modules follow from its configuration, with one frozen tokenizer of pictures.

    The frozen tokenizer is not a submodule: `load_frozen` builds it, replicated.
    """

    keys: ClassVar[KeyTable]
    """How the keys of its checkpoints are read."""
    frozen_name: ClassVar[str]
    """Name of the frozen tokenizer in messages."""
    frozen_hint: ClassVar[str] = ""
    """Where the weights in `frozen_folder` come from, in a sentence for messages: FOLDER in it is that folder."""
    config: Any
    frozen: Frozen

    @staticmethod
    @abstractmethod
    def configuration(path: str) -> Any:
        """The configuration in the model folder `path`. Raises ModelError for another family or an incomplete one."""

    @staticmethod
    @abstractmethod
    def trained_parts(config: Any) -> dict[str, nn.Module]:
        """Children of the model by name, their weights not initialized; built on the device of the surrounding context."""

    @abstractmethod
    def choose_attention(self, attention: str) -> None:
        """Set the attention implementation; `attention` is a value of `model.attention`."""

    @abstractmethod
    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward, layer by layer; non-reentrant, for partitioned parameters."""

    def __init__(self, config: Any, processor: Processor, *, attention: str, gradient_checkpointing: bool):
        super().__init__()
        self.config, self.processor, self.frozen = config, processor, Frozen(self.frozen_name)
        for name, part in self.trained_parts(config).items():
            self.add_module(name, part)
        self.choose_attention(attention)
        if gradient_checkpointing:
            self.checkpoint_activations()

    @classmethod
    def build(cls: type[F], path: str, processor: Processor, *, attention: str, gradient_checkpointing: bool) -> F:
        """Construct from the configuration in `path`; the weights are left uninitialized."""
        config = cls.configuration(path)
        return cls(config, processor, attention=attention, gradient_checkpointing=gradient_checkpointing)

    @classmethod
    def write_settings(cls, path: str, out: Path) -> None:
        """Copy the small files of the folder `path` (`copy_settings`), those in its `frozen_folder` included."""
        copy_settings(Path(path), out)
        frozen = Path(path) / cls.frozen_folder
        if cls.frozen_folder and frozen.is_dir():
            copy_settings(frozen, out / cls.frozen_folder)

    @classmethod
    def write_processor(cls, path: str, out: Path) -> None:
        """Copy the small files of the folder `path` (`copy_settings`), but for those that only a model reads."""
        copy_settings(Path(path), out, without=MODEL_SETTINGS)

    @classmethod
    def usage(cls, folder: str, path: str) -> str:
        """The page `usage_page`, SIDE, SOURCE and "FOLDER" in it replaced; the last with its quotes, by a literal of Python."""
        page = cls.usage_page(path)
        if not page:
            return ""
        processor = cls.open_processor(path, max_length=MAX_LENGTH)
        source = getattr(processor, "source_size", processor.image_size)
        text = page.replace("SIDE", str(processor.image_size)).replace("SOURCE", str(source))
        return text.replace('"FOLDER"', json.dumps(folder, ensure_ascii=False))  # last: a name may hold the other words

    @classmethod
    def usage_page(cls, path: str) -> str:
        """usage.md of the family's folder, "" if there is none; `path`: the exported folder that it is about."""
        page = Path(inspect.getfile(cls)).with_name("usage.md")
        return page.read_text(encoding="utf-8") if page.is_file() else ""

    @classmethod
    def differences(cls, path: str) -> list[str]:
        if not cls.in_transformers:
            return []
        processor = cls.open_processor(path, max_length=MAX_LENGTH)
        assert isinstance(processor, RowProcessor)
        return differences(Path(path), processor)

    # Weights

    @classmethod
    def files(cls, path: str) -> TensorFiles:
        """The files that hold the weights of the folder `path`, those in its `frozen_folder` included."""
        files, frozen = TensorFiles.of_folder(path).files, Path(path) / cls.frozen_folder
        if cls.frozen_folder and frozen.is_dir():
            files = [*files, *TensorFiles.of_folder(frozen, cls.frozen_hint.replace("FOLDER", str(frozen))).files]
        return TensorFiles(files)

    @classmethod
    def weights(cls, path: str) -> RenamedWeights:
        """Lazily read weights under our parameter names, names and shapes checked against `path`/config.json.

        Raises ModelError for the checkpoint of another model. Call it outside the engine's partitioning context.
        """
        (weights, frozen), config = cls.keys.open(cls.files(path), path), cls.configuration(path)
        cls.check_stored(config, weights, frozen, path)
        with torch.device("meta"):
            parts = nn.ModuleDict(cls.trained_parts(config))
        expected = {name: tensor.shape for name, tensor in parts.state_dict().items()}
        check_names(expected, weights.names(), path)
        check_shapes(expected, {name: weights.shape(name) for name in expected}, path)
        weights.check_kinds(expected, path)
        return weights

    @staticmethod
    def check_stored(config: Any, weights: RenamedWeights, frozen: RenamedWeights, path: str) -> None:
        """Raises ModelError where a family can say which of its settings a checkpoint contradicts, before all names and shapes
        are compared. `frozen`: weights of the frozen tokenizer, without `KeyTable.frozen_root`."""
        return

    def check_frozen(self, path: str) -> None:
        _, weights = self.keys.open(self.files(path), path)
        with torch.device("meta"):
            state = self.build_frozen().state_dict()
        expected, what = {name: tensor.shape for name, tensor in state.items()}, f"The {self.frozen_name} in {path}"
        check_names(expected, weights.names(), what)
        check_shapes(expected, {name: weights.shape(name) for name in expected}, what)
        weights.check_kinds((name for name, tensor in state.items() if tensor.is_floating_point()), what)

    @classmethod
    def frozen_weights(cls, path: str) -> RenamedWeights:
        """The frozen tokenizer, under its names in an exported folder; in a folder for it alone they have no prefix."""
        frozen = cls.keys.open(cls.files(path), path)[1]
        return frozen if cls.frozen_folder else frozen.prefixed(cls.keys.frozen_root)

    def hold_frozen(self, module: nn.Module) -> None:
        """Use `module`, which `build_frozen` made, as the frozen tokenizer."""
        self.frozen.keep(module)

    def frozen_modules(self) -> dict[str, nn.Module]:
        return {self.frozen.name: self.frozen.module}

    def load_frozen(self, path: str, device: torch.device) -> None:
        """Build and load the frozen tokenizer, outside the module tree, in float32. In bfloat16 several of a
        hundred codes are not those that the model was trained on."""
        _, weights = self.keys.open(self.files(path), path)
        self.frozen.load(self.build_frozen(), weights, path, device)

    @classmethod
    def load(
        cls: type[F],
        path: str | Path,
        *,
        attention: str = "sdpa",
        max_length: int = MAX_LENGTH,
        gradient_checkpointing: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> F:
        """The whole model in one process, without an engine; in eval mode. `dtype`: of all but the frozen tokenizer."""
        options: dict[str, Any] = {"gradient_checkpointing": gradient_checkpointing, "device": device, "dtype": dtype}
        return load_whole(cls, path, cls.weights(str(path)), attention=attention, max_length=max_length, **options)

    @classmethod
    def check_folder(cls, path: str) -> None:
        cls.configuration(path)
