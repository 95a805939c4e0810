"""config.json of an OpenUni folder: the configurations of its parts, and the settings of the flow.

The layout is ours: the official repository has its sizes in Python, and Hugging Face has no such model::

    {"model_type": "openuni", "image_size": 512, "queries": 256, "internvl": {...}, "connector": {...},
     "transformer": {...}, "autoencoder": {...}, "flow": {...}}
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import InternVLConfig, PretrainedConfig, SiglipVisionConfig

from megaunigame.errors import ModelError
from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.diffusion.modules import check_fit, downsampling
from megaunigame.models.weights.settings_files import config_from, read_config_file, write_settings_file

MODEL_TYPE = "openuni"


@dataclass
class OpenUniConfig:
    """Raises ModelError when the parts do not fit each other."""

    internvl: InternVLConfig
    connector: dict[str, Any]
    """hidden_size, intermediate_size, num_hidden_layers, num_attention_heads."""
    transformer: dict[str, Any]
    """Arguments of diffusers' SanaTransformer2DModel."""
    autoencoder: dict[str, Any]
    """Arguments of diffusers' AutoencoderDC."""
    image_size: int = 512
    """Side of generated pictures, in pixels."""
    queries: int = 256
    """N: meta queries, and so hidden states of a generated picture."""
    flow: Flow = field(default_factory=Flow)

    def __post_init__(self) -> None:
        self.flow.check()
        # No release ties the text embeddings to lm_head, but the configuration class does by default.
        self.internvl.tie_word_embeddings = False
        self.internvl.text_config.tie_word_embeddings = False
        check_fit(self.transformer, self.autoencoder, self.image_size)
        if self.visual_tokens != self.internvl.image_seq_length:
            raise ModelError(
                f"internvl.image_seq_length is {self.internvl.image_seq_length}, but pictures of {self.source_size} pixels "
                f"give {self.visual_tokens} visual tokens; write {self.visual_tokens}."
            )

    def get_text_config(self) -> PretrainedConfig:
        """The configuration of the language model, as in transformers' configurations."""
        return self.internvl.text_config

    @property
    def width(self) -> int:
        """D: width of the language model."""
        return self.internvl.text_config.hidden_size

    @property
    def source_size(self) -> int:
        """Side of source pictures, in pixels."""
        return self.internvl.vision_config.image_size[0]

    @property
    def visual_tokens(self) -> int:
        """Tokens of one source picture in the sequence."""
        vision = self.internvl.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * self.internvl.downsample_ratio) ** 2

    @property
    def downsampling(self) -> int:
        """Pixels of one latent cell along an edge."""
        return downsampling(self.autoencoder)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        side = self.image_size // self.downsampling
        return self.autoencoder["latent_channels"], side, side

    @property
    def caption_width(self) -> int:
        """Width of the condition the transformer reads."""
        return self.transformer["caption_channels"]

    def connector_config(self) -> SiglipVisionConfig:
        """The connector's layers are those of SigLIP: pre-norm, bidirectional, no positions, no final norm."""
        return SiglipVisionConfig(**self.connector)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": MODEL_TYPE,
            "image_size": self.image_size,
            "queries": self.queries,
            "internvl": self.internvl.to_dict(),
            "connector": self.connector,
            "transformer": self.transformer,
            "autoencoder": self.autoencoder,
            "flow": dataclasses.asdict(self.flow),
        }

    def write(self, folder: Path) -> None:
        """Write `folder`/config.json."""
        write_settings_file(folder / "config.json", self.to_dict())


def read_config(path: str | Path) -> OpenUniConfig:
    """The configuration of the model folder `path`. Raises ModelError for another family or an incomplete file."""
    file = Path(path) / "config.json"
    raw = read_config_file(file, "Give an OpenUni folder; megaunigame family openuni assemble makes one.")
    kind = raw.pop("model_type", None)
    if kind != MODEL_TYPE:
        raise ModelError(f"{file} describes model_type {kind!r}; an OpenUni folder has {MODEL_TYPE!r}.")
    known = {f.name for f in dataclasses.fields(OpenUniConfig)}
    if set(raw) != known:
        raise ModelError(f"{file} has the keys {', '.join(sorted(raw))}; it must have {', '.join(sorted(known))}.")
    levels = {f.name for f in dataclasses.fields(Flow)}
    if set(raw["flow"]) != levels:
        raise ModelError(f"{file}: flow has {', '.join(sorted(raw['flow']))}; it must have {', '.join(sorted(levels))}.")
    internvl = config_from(InternVLConfig, raw.pop("internvl"), file)
    return OpenUniConfig(internvl=internvl, flow=Flow(**raw.pop("flow")), **raw)
