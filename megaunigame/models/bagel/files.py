"""Which files of a BAGEL folder hold its weights."""

from __future__ import annotations

from pathlib import Path

from megaunigame.errors import ModelError
from megaunigame.models.bagel.keys import is_of_autoencoder
from megaunigame.models.weights.tensor_files import LAYOUTS, TensorFiles

AVERAGE, AUTOENCODER = "ema.safetensors", "ae.safetensors"
"""Of a release: the average of the trained weights, and the autoencoder."""


def checkpoint_files(path: str | Path) -> TensorFiles:
    """The two files of a release, or those of a folder written here.

    Raises ModelError when the autoencoder is missing or there twice, for a file with the keys of the other one, and for a
    folder of the official training, which has the weights of its last step and their average: both have the same names.
    """
    folder = Path(path)
    average, autoencoder = folder / AVERAGE, folder / AUTOENCODER
    others = [name for name in LAYOUTS if (folder / name).is_file()]
    if average.is_file() and others:
        raise ModelError(
            f"{folder} has {AVERAGE} and {others[0]}: averaged weights, and those of a last step. Leave one of them there; "
            f"{AVERAGE} is what is published."
        )
    files = [average] if average.is_file() else TensorFiles.of_folder(folder).files
    if autoencoder.is_file():
        _check_keys(files, autoencoder)
        files = [*files, autoencoder]
    elif average.is_file():
        raise ModelError(f"{folder} has {AVERAGE}, but no {AUTOENCODER}. Copy the autoencoder of the release there.")
    return TensorFiles(files)


def _check_keys(files: list[Path], autoencoder: Path) -> None:
    """Raises ModelError for a key in the file of the other part: whichever were read, nobody would know."""
    index = TensorFiles(files).index
    inside = min((key for key in index if is_of_autoencoder(key)), default=None)
    if inside is not None:
        raise ModelError(
            f"{index[inside]} has an autoencoder of its own ({inside}), and {autoencoder.name} is next to it. Which is meant? "
            f"A release has it in {autoencoder.name} alone, an exported folder has no {autoencoder.name}: move one away."
        )
    foreign = min((key for key in TensorFiles([autoencoder]).index if not is_of_autoencoder(key)), default=None)
    if foreign is not None:
        raise ModelError(
            f"{autoencoder} has the key {foreign}, which is not one of FLUX's autoencoder (encoder.down., decoder.up., ...; "
            "files of diffusers have other names). Copy ae.safetensors of BAGEL-7B-MoT there."
        )
