"""Neutral rows -> the tensors of Janus's two passes."""

from __future__ import annotations

from pathlib import Path

from megaunigame.models.janus.configuration import codes_per_image, read_config, visual_tokens
from megaunigame.models.janus.conversation import JanusFormat
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.weights.settings_files import check_tokens, read_channels, read_system_prompt, read_tokenizer


class JanusProcessor(RowProcessor):
    """Pictures of one size; after the prompt of a generate row come the codes, with a loss on each."""

    format: JanusFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> JanusProcessor:
        """Read tokenizer and image settings of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        tokenizer = read_tokenizer(folder)
        config = read_config(folder)
        check_tokens(tokenizer, config.get_text_config().vocab_size, folder)
        system_prompt = read_system_prompt(folder)
        codes, side = codes_per_image(config), config.vision_config.image_size
        return cls(
            tokenizer,
            JanusFormat(tokenizer, visual_tokens(config), system_prompt, str(folder)),
            image_size=side,
            source_size=side,
            after_prompt=codes,
            loss_positions=codes,
            max_length=max_length,
            mean=read_channels(folder, "image_mean", HALF),
            std=read_channels(folder, "image_std", HALF),
        )
