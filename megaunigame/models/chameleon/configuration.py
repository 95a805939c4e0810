"""The configuration of a Chameleon folder, as transformers' ChameleonConfig, and where its weights are."""

from __future__ import annotations

from pathlib import Path

from transformers import ChameleonConfig, PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.chameleon.keys import IMAGE_TOKENIZER, OF_IMAGE_TOKENIZER
from megaunigame.models.chameleon.release import ReleaseFiles, ReleaseFolder, is_release, release_config
from megaunigame.models.shapes import check_channels
from megaunigame.models.text import picture_sides
from megaunigame.models.weights.settings_files import config_from, read_config_file, read_tokenizer
from megaunigame.models.weights.tensor_files import TensorFiles

VQGAN = Path("tokenizer") / "vqgan.ckpt"
"""In a Hugging Face folder: the image tokenizer of the original release, whose decoder the conversion leaves out."""


HINT = "Give a Chameleon folder: Hugging Face layout, or models/7b of the original release."


def read_config(path: str | Path) -> ChameleonConfig:
    """The configuration of the model folder `path`.

    Raises ModelError for another family, an incomplete configuration, or an image tokenizer that no release has.
    """
    folder = Path(path)
    if is_release(folder):
        config = release_config(ReleaseFolder(folder))
    else:
        raw = read_config_file(folder / "config.json", HINT)
        if raw.get("model_type") != "chameleon":
            kind = raw.get("model_type")
            raise ModelError(f"{folder / 'config.json'} describes model_type {kind!r}; a Chameleon folder has 'chameleon'.")
        config = config_from(ChameleonConfig, raw, folder / "config.json")
    check_image_tokenizer(config, folder)
    return config


def read_text_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The text tokenizer of the model folder `path`. Raises ModelError when it has none."""
    folder = Path(path)
    return ReleaseFolder(folder).text_tokenizer() if is_release(folder) else read_tokenizer(folder)


def check_image_tokenizer(config: ChameleonConfig, where: str | Path) -> None:
    """Raise ModelError for settings of the image tokenizer that change its layers and that no release has."""
    vq = config.vq_config
    check_channels(vq.base_channels)
    if vq.double_latent or vq.attn_type != "vanilla":
        raise ModelError(
            f"The image tokenizer in {where} has double_latent={vq.double_latent} and attn_type={vq.attn_type!r}; released "
            "ones have False and 'vanilla', and only these are supported."
        )


def cell(config: ChameleonConfig) -> int:
    """Pixels of one code along an edge."""
    return 2 ** (len(config.vq_config.channel_multiplier) - 1)


def read_sides(path: str | Path, config: ChameleonConfig) -> tuple[int, int]:
    """Sides of generated and of understood pictures, in pixels.

    `image_size` and `source_size` of processor_config.json; else the resolution of the image tokenizer, for both.
    Raises ModelError for a side that is not a multiple of a code's.
    """
    return picture_sides.read_sides(path, cell(config), config.vq_config.resolution)


def tensor_files(path: str | Path) -> TensorFiles:
    """All weight files of the folder, the image tokenizer whole: from `vqgan.ckpt` where there is one, else from the others.

    Raises ModelError when it has no decoder.
    """
    folder = Path(path)
    if is_release(folder):
        return ReleaseFiles(ReleaseFolder(folder))
    files, vqgan = TensorFiles.of_folder(folder), folder / VQGAN
    if vqgan.is_file():
        # Whole, not the decoder alone: a Hugging Face folder in bfloat16 has rounded the encoder, and some codes with it.
        return TensorFiles([*files.files, vqgan]).without(IMAGE_TOKENIZER)
    decoder = tuple(prefix + "decoder." for prefix in ("", IMAGE_TOKENIZER))
    if not any(key.startswith(decoder) for key in files.index):
        raise ModelError(
            f"The image tokenizer in {folder} is not whole: {len(_tokenizer_keys(files))} of its tensors are there, "
            f"missing: decoder.conv_in.weight and the rest of the decoder. The Hugging Face conversion leaves it out. Copy "
            f"tokenizer/vqgan.ckpt of the original release to {vqgan}."
        )
    return files


def _tokenizer_keys(files: TensorFiles) -> list[str]:
    return [key for key in files.index if key.startswith((IMAGE_TOKENIZER, *OF_IMAGE_TOKENIZER))]
