"""Neutral rows -> the tensors of BAGEL's two passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.errors import DataError, ModelError
from megaunigame.models.bagel.configuration import BagelConfig, read_config
from megaunigame.models.bagel.conversation import BagelFormat
from megaunigame.models.text.pictures import TO_SQUARE
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.text.sequences import TokenSequence, stack_pictures
from megaunigame.models.weights.settings_files import (
    check_tokens,
    read_settings,
    read_system_prompt,
    read_tokenizer,
    read_whole,
)
from megaunigame.step.inputs import GenerateInputs
from megaunigame.step.requests import CROP
from megaunigame.step.rows import GenerateRow, Row, ShownPicture

SETTINGS = "processor_config.json"
IMAGE_SIZE, SOURCE_SIZE = 512, 518
"""Sides of pictures where a folder says nothing."""


class BagelProcessor(RowProcessor):
    """After the request come the latent tokens of the picture, one loss position each.

    A source picture is read twice: as the vision tower sees it, and as latents, at the size of drawn pictures. A row with a
    context has several.
    """

    format: BagelFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> BagelProcessor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        tokenizer, config = read_tokenizer(folder), read_config(folder)
        check_tokens(tokenizer, config.text.vocab_size, folder)
        image, source = read_sides(folder, config)
        latent, visual = (image // config.cell) ** 2, (source // config.vision.patch_size) ** 2
        return cls(
            tokenizer,
            BagelFormat(tokenizer, visual, latent, read_system_prompt(folder), str(folder)),
            image_size=image,
            source_size=source,
            after_prompt=latent,
            loss_positions=latent,
            max_length=max_length,
            mean=HALF,
            std=HALF,
        )

    def generate_prompts(
        self, prompts: Sequence[str], sources: Sequence[Tensor | None] | None = None, geometry: str = CROP
    ) -> GenerateInputs:
        inputs = super().generate_prompts(prompts, sources, geometry)
        if sources is not None:
            shown = [[] if source is None else [source] for source in sources]
            self._add_source_pixels(inputs, shown, [geometry] * len(prompts))
        return self._finished(inputs)

    def edit_prompts(
        self, prompts: Sequence[str], contexts: Sequence[Sequence[ShownPicture | str]], geometry: str = CROP
    ) -> GenerateInputs:
        """Requests with source pictures and texts between them, for `sample`: as `generate_prompts`.

        Raises ConfigError and DataError when one does not fit into a row.
        """
        geometries, names = [geometry] * len(prompts), [""] * len(prompts)
        limit = self.max_length - self.after_prompt
        sequences = [self.format.interleaved(c, p, limit) for p, c in zip(prompts, contexts, strict=True)]
        rows = [GenerateRow(p, torch.empty(3, 0, 0), context=c) for p, c in zip(prompts, contexts, strict=True)]
        counts, targets = torch.full((len(prompts),), float(self.loss_positions)), torch.zeros(len(prompts), 3, 0, 0)
        images = self._squares([self._shown(row) for row in rows], geometries)
        inputs = self._requested(sequences, images, [0] * len(rows), names, counts, targets)
        self._add_source_pixels(inputs, [_as_latents(row) for row in rows], geometries)
        return self._finished(inputs)

    def check(self, row: Row, geometry: str, key: str) -> None:
        if isinstance(row, GenerateRow) and row.context:
            if not self.format.surely_fits(row.context, self.max_length - self.after_prompt):
                self._request(row, key)
            return
        super().check(row, geometry, key)

    def _generate(
        self,
        rows: Sequence[Row | None],
        terms: Sequence[int],
        keys: Sequence[str],
        geometries: Sequence[str],
        *,
        takes_images: bool,
    ) -> GenerateInputs:
        inputs = super()._generate(rows, terms, keys, geometries, takes_images=takes_images)
        if takes_images:
            sources = [_as_latents(row) if isinstance(row, GenerateRow) else [] for row in rows]
            self._add_source_pixels(inputs, sources, geometries)
        return inputs

    def _request(self, row: GenerateRow, key: str) -> TokenSequence:
        if not row.context:
            return super()._request(row, key)
        prompt = None if row.unconditional else row.prompt
        try:
            return self.format.interleaved(row.context, prompt, self.max_length - self.after_prompt)
        except DataError as error:
            raise DataError(f"Sample {key}: {error}") from error

    def _add_source_pixels(
        self, inputs: GenerateInputs, sources: Sequence[Sequence[Tensor]], geometries: Sequence[str]
    ) -> None:
        """As bytes, as many per row as any row has, and 1 at least."""
        pairs = zip(sources, geometries, strict=True)
        squares = [[TO_SQUARE[geometry](picture, self.image_size) for picture in pictures] for pictures, geometry in pairs]
        inputs.source_pixels, given = stack_pictures(squares, self.image_size)
        inputs.levels["source_pixels"] = self.normalize_target.levels(given)


def _as_latents(row: GenerateRow) -> list[Tensor]:
    """Source pictures of a row that it reads as latents."""
    if row.context:
        return [part.picture for part in row.context if isinstance(part, ShownPicture) and part.latents]
    return [] if row.source is None else [row.source]


def read_sides(folder: Path, config: BagelConfig) -> tuple[int, int]:
    """Sides of drawn and of understood pictures, in pixels: `image_size` and `source_size` of processor_config.json.

    Raises ModelError for a side that is not a multiple of a token's, or larger than the model's position tables.
    """
    file = folder / SETTINGS
    settings = read_settings(file)
    sides = []
    for name, default, unit, most in (
        ("image_size", IMAGE_SIZE, config.cell, config.max_latent_size),
        ("source_size", SOURCE_SIZE, config.vision.patch_size, config.vit_max_num_patch_per_side),
    ):
        side = read_whole(settings, name, default, file)
        if side % unit or side > unit * most:
            raise ModelError(
                f"{name}={side} (in {file}) must be a multiple of {unit}, the pixels of one token, and {unit * most} at most, "
                f"because the model knows {most} places along an edge."
            )
        sides.append(side)
    return sides[0], sides[1]
