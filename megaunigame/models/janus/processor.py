"""Neutral rows -> the tensors of Janus's two passes."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from megaunigame.models.janus.configuration import codes_per_image, read_config, visual_tokens
from megaunigame.models.janus.conversation import JanusFormat
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.weights.settings_files import read_settings, read_tokenizer


class JanusProcessor(RowProcessor):
    """Pictures of one size; after the prompt of a generate row come the codes, with a loss on each."""

    format: JanusFormat

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        image_size: int,
        visual_tokens: int,
        codes: int,
        max_length: int,
        mean: tuple[float, ...] = HALF,
        std: tuple[float, ...] = HALF,
        system_prompt: str = "",
        where: str = "the model folder",
    ):
        super().__init__(
            tokenizer,
            JanusFormat(tokenizer, visual_tokens, system_prompt, where),
            image_size=image_size,
            source_size=image_size,
            after_prompt=codes,
            loss_positions=codes,
            max_length=max_length,
            mean=mean,
            std=std,
        )
        self.codes = codes

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> JanusProcessor:
        """Read tokenizer and image settings of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        tokenizer = read_tokenizer(folder)
        config = read_config(folder)
        images = read_settings(folder / "preprocessor_config.json")
        return cls(
            tokenizer,
            image_size=config.vision_config.image_size,
            visual_tokens=visual_tokens(config),
            codes=codes_per_image(config),
            max_length=max_length,
            mean=tuple(images.get("image_mean", HALF)),
            std=tuple(images.get("image_std", HALF)),
            system_prompt=read_settings(folder / "processor_config.json").get("system_prompt", ""),
            where=str(folder),
        )
