"""One set of weights from the separately published parts of an OpenUni."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from megaunigame.models.base import Weights
from megaunigame.models.diffusion.modules import autoencoder
from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.models.openuni.folder import fresh_bridge
from megaunigame.models.openuni.keys import AUTOENCODER, KEYS
from megaunigame.models.openuni.parts import trained_parts
from megaunigame.models.weights.loading import check_names, check_shapes
from megaunigame.models.weights.renamed import RenamedWeights, StoredTensor
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.storage.pieces import Piece

TRANSFORMER = "transformer."


class MergedWeights:
    """Several weights as one (implements `Weights`); a later part overrides the names of an earlier one."""

    def __init__(self, parts: list[RenamedWeights], given: Mapping[str, Tensor]):
        """`given`: tensors in memory, which any of `parts` may replace."""
        self.given = dict(given)
        self.owner = {name: part for part in parts for name in part.names()}

    def names(self) -> set[str]:
        return {*self.given, *self.owner}

    def shape(self, name: str) -> torch.Size:
        return self.owner[name].shape(name) if name in self.owner else self.given[name].shape

    def read(self, name: str) -> Tensor:
        return self.owner[name].read(name) if name in self.owner else self.given[name]

    def pieces(self, name: str) -> list[Piece] | None:
        return self.owner[name].pieces(name) if name in self.owner else None


def assemble(
    config: OpenUniConfig, internvl: Path, transformer: Path, autoencoder_folder: Path, openuni: Path | None, seed: int
) -> Weights:
    """All weights under our names, the autoencoder's under `vae.`; names and shapes checked against `config`.

    `internvl`: folder with InternVL's own names or transformers'. `transformer`, `autoencoder_folder`: folders of diffusers.
    `openuni`: a file with official keys, which overrides the others; None: meta queries, connector and projector are
    initialized from `seed`. Raises ModelError when a part is missing or has another size.
    """
    parts = [
        KEYS.open(TensorFiles.of_folder(internvl), internvl)[0],
        _plain(transformer).prefixed(TRANSFORMER),
        _plain(autoencoder_folder).prefixed(AUTOENCODER),
    ]
    if openuni is not None:
        model, frozen = KEYS.open(TensorFiles([openuni]), openuni)
        parts += [model, frozen.prefixed(AUTOENCODER)]
    whole = MergedWeights(parts, fresh_bridge(config, seed) if openuni is None else {})
    with torch.device("meta"):
        modules = nn.ModuleDict(trained_parts(config) | {AUTOENCODER.removesuffix("."): autoencoder(config.autoencoder)})
    expected = {name: tensor.shape for name, tensor in modules.state_dict().items()}
    where = "These parts together"
    check_names(expected, whole.names(), where)
    check_shapes(expected, {name: whole.shape(name) for name in expected}, where)
    return whole


def _plain(folder: Path) -> RenamedWeights:
    """The weights of a folder under the names they are stored with."""
    files = TensorFiles.of_folder(folder)
    return RenamedWeights(files, {key: StoredTensor(key) for key in files.index})
