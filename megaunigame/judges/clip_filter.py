"""The plausibility filter: a frozen CLIP measures how much a decoded picture resembles its source or its caption.

similarity(x) = cos(E(x), E(source))  or  cos(E(x), T(caption));  a picture is plausible when similarity >= tau.

Cosines of two pictures and cosines of a picture and a text have different scales (the latter hardly exceed .35 with a
large CLIP), so each comparison has its own default threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.judges.clip import FrozenClip
from megaunigame.settings import between, one_of

DEFAULT_TAU = {"image": 0.6, "text": 0.3}


@dataclass
class ClipConfig:
    """Which CLIP, and what a decoded picture is compared with."""

    model: str = "ViT-B-32"
    """Name of an open_clip architecture; or a folder with open_clip_config.json, weights and, for `compare: text`, tokenizer
    files; or `tiny-random`: small, random, always the same, for tests."""
    pretrained: str = ""
    """Weights of a named architecture: a file, a folder that holds one, or (with a network) a tag of open_clip."""
    compare: str = one_of(DEFAULT_TAU, "image")
    """`image`: with the source picture; `text`: with the caption or question."""
    tau: float | None = between(-1, 1, None)
    """Smallest accepted cosine. None: .6 for image, .3 for text."""


class ClipFilter(FrozenClip):
    def __init__(self, config: ClipConfig, device: torch.device):
        """Raises ConfigError for a CLIP that cannot be loaded."""
        self.compare = config.compare
        self.tau = DEFAULT_TAU[config.compare] if config.tau is None else config.tau
        super().__init__(config.model, config.pretrained, config.compare == "text", device)

    def similarity(self, pictures: Tensor, sources: Tensor | None = None, texts: list[str] | None = None) -> Tensor:
        """(B,) float32 cosine in [-1, 1] of each picture with its source (`compare: image`) or its text (`compare: text`).

        `pictures` and `sources` are (B, 3, H, W) in [-1, 1], `texts` has B entries. Differentiable with respect to
        `pictures` only. Raises ValueError when the side to compare with is missing.
        """
        asked, given = ("`texts`", texts) if self.compare == "text" else ("`sources`", sources)
        if given is None:
            raise ValueError(f"compare: {self.compare} needs {asked}.")
        with torch.autocast(self.device.type, enabled=False):
            with torch.no_grad():
                reference = self._embed(given) if isinstance(given, Tensor) else self.embed_texts(given)
            similarity = (self._embed(pictures) * reference).sum(-1)
        return similarity.clamp(-1, 1)

    def accepts(self, similarity: Tensor) -> Tensor:
        """(B,) bool: similarity at or above tau. NaN is not accepted."""
        return similarity >= self.tau

    def _embed(self, pictures: Tensor) -> Tensor:
        return self.embed_inputs(self.preprocess(pictures))
