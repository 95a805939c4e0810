"""Neutral rows -> the tensors of OpenUni's two passes."""

from __future__ import annotations

import math
from pathlib import Path

from megaunigame.models.openuni.configuration import read_config
from megaunigame.models.openuni.conversation import OpenUniFormat
from megaunigame.models.text.processor import RowProcessor
from megaunigame.models.weights.settings_files import check_tokens, read_channels, read_system_prompt, read_tokenizer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OpenUniProcessor(RowProcessor):
    """After the prompt of a generate row come the meta queries; its loss is on the elements of the latents."""

    format: OpenUniFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> OpenUniProcessor:
        """Read tokenizer and image settings of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        tokenizer, config = read_tokenizer(folder), read_config(folder)
        check_tokens(tokenizer, config.get_text_config().vocab_size, folder)
        system_prompt = read_system_prompt(folder)
        return cls(
            tokenizer,
            OpenUniFormat(tokenizer, config.visual_tokens, system_prompt, str(folder)),
            image_size=config.image_size,
            source_size=config.source_size,
            after_prompt=config.queries,
            loss_positions=math.prod(config.latent_shape),
            max_length=max_length,
            mean=read_channels(folder, "image_mean", IMAGENET_MEAN),
            std=read_channels(folder, "image_std", IMAGENET_STD),
        )
