"""Samples of BAGEL packed as in the official training, position by position, from the words of the fixture."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megaunigame.step.inputs import IGNORE

TEXT, VIT, VAE = 0, 1, 2
"""Kinds of positions."""


@dataclasses.dataclass
class Pack:
    """Samples one after another, position by position."""

    ids: list[int] = dataclasses.field(default_factory=list)
    modality: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    weights: list[float] = dataclasses.field(default_factory=list)
    noised: list[int] = dataclasses.field(default_factory=list)
    """Number of the noised picture, 0 for everything else."""
    block: list[int] = dataclasses.field(default_factory=list)
    sample: list[int] = dataclasses.field(default_factory=list)
    drawn: list[bool] = dataclasses.field(default_factory=list)
    pictures: list[tuple[int, str, bool]] = dataclasses.field(default_factory=list)
    """Modality, name, and whether noised."""

    def add(self, ids: list[int], modality: list[int], places: list[int], labels: list[int], weights: list[float]) -> None:
        for column, values in zip((self.ids, self.modality, self.places), (ids, modality, places), strict=True):
            column += values
        self.labels += labels
        self.weights += weights

    def mask(self) -> Tensor:
        """(L, L) bool."""
        order = torch.arange(len(self.ids))
        sample, block, noised = (torch.tensor(each) for each in (self.sample, self.block, self.noised))
        same = (block[:, None] == block) & (block > 0)
        hidden = (noised > 0) & (noised[:, None] != noised)
        return (sample[:, None] == sample) & ((order <= order[:, None]) | same) & ~hidden

    def batch(self) -> dict[str, Tensor]:
        return {
            "token_ids": torch.tensor(self.ids),
            "modality": torch.tensor(self.modality),
            "position_ids": torch.tensor(self.places),
            "sample_lens": torch.tensor([self.sample.count(n) for n in range(max(self.sample) + 1)]),
            "attention_mask": self.mask(),
        }


def pack_of(config: dict[str, Any], samples: list[str], sizes: dict[str, Any], drop: tuple[int, ...] = ()) -> Pack:
    """`drop`: modalities whose segments are dropped where they may be."""
    pack, special = Pack(), config["special_tokens"]
    bos, eos = special["bos_token_id"], special["eos_token_id"]
    begin, end = special["start_of_image"], special["end_of_image"]
    for number, name in enumerate(samples):
        place = 0
        for segment in config["samples"][name]:
            kind = {"text": TEXT, "vit_image": VIT, "vae_image": VAE}[segment["type"]]
            loss = segment["loss"] == 1
            if kind in drop and segment["enable_cfg"]:
                place += kind != TEXT
                continue
            before = len(pack.ids)
            if kind == TEXT:
                ids = [bos, *segment["ids"], eos]
                count, own = len(ids), len(ids) - 1
                labels, weights = ([*ids[1:], IGNORE], [own**-0.5] * own + [0.0]) if loss else ([IGNORE] * count, [0.0] * count)
                if segment.get("special_token_loss"):
                    labels[-1], weights[-1] = segment["special_token_label"], 1.0
                pack.add(ids, [TEXT] * count, list(range(place, place + count)), labels, weights)
                place += count
            else:
                stride = 8 if kind == VAE else config["vit"]["patch_size"]
                height, width = sizes[segment["image"]].shape[-2:]
                inner = (height // stride) * (width // stride)
                count = inner + 2
                pack.add(
                    [begin, *[-1] * inner, end], [TEXT, *[kind] * inner, TEXT], [place] * count, [IGNORE] * count, [0.0] * count
                )
                pack.pictures.append((kind, segment["image"], loss))
                place += 0 if loss else 1
            added = len(pack.ids) - before
            block = max(pack.block, default=0) + 1 if kind != TEXT else 0
            pack.block += [block] * added
            pack.noised += [block if kind == VAE and loss else 0] * added
            pack.drawn += [kind == VAE and loss and modality == VAE for modality in pack.modality[before:]]
            pack.sample += [number] * added
    return pack
