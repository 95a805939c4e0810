"""The game on shards with stored codes: only pictures that are those of the shards take them.

Attacked pictures and pictures of the buffer differ from those of every sample; codes of a sample in their place would undo the
attack, and raise no error.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megaunigame.data.codes import write_codes
from megaunigame.data.decode import CODES_FIELD, decode_sample
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.generation import Generation
from megaunigame.registry import find
from megaunigame.step.codes import PictureCodes
from tests.data.shard_files import write_shards
from tests.multi_process.tiny_run import sample, write_family
from tests.objectives.played_by_hand import ADVERSARIES, DATA, Played

STEPS = 3
PIXEL = [Generation(Generation.Config(caption_rows=1, pixel_rows=3, caption_geometry="fit", pixel_geometry="fit", drop=0.5))]
WAYS: list[dict[str, Any]] = [
    {"mode": "alternating"},
    {"mode": "simultaneous"},
    {"mode": "alternating", "adversary": {"kind": "noise"}},
    {"mode": "alternating", "others": PIXEL, "redraw": "pixel"},
    {"mode": "simultaneous", "others": PIXEL, "redraw": "pixel"},
    {"mode": "alternating", "path": "embedding", "anchor": "none"},
    {"mode": "simultaneous", "path": "embedding", "anchor": "none"},
]


def named(way: dict[str, Any]) -> str:
    return "-".join([*(part for part in way.values() if isinstance(part, str)), *way.get("adversary", {}).values()])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(family)`: a model folder, and shards with the codes of its tokenizer."""
    made = {}

    def write(family: str):
        if family not in made:
            home = tmp_path_factory.mktemp(family)
            folder = write_family(home / "model", family)
            made[family] = folder, write_coded(home / "shards", loaded(family, folder))
        return made[family]

    return write


def loaded(family: str, folder) -> Any:
    return find("models", family, UnifiedModel).load(folder, max_length=96).train()


def write_coded(folder, model):
    """Shards of pictures with their codes, for rows that show the whole picture."""
    processor, numbers = model.processor, DATA["pictures"]
    sides = {processor.image_size, processor.source_size} if model.reads_codes else {processor.image_size}

    def fields(i: int) -> dict[str, bytes]:
        given = sample(numbers[i])
        picture = decode_sample(str(i), given).image
        grids = {}
        for side in sides:
            codes = model.encode_target(processor.target_pixels(picture, "fit", side)[None])
            grids["fit", side] = codes.unflatten(1, (round(codes.shape[1] ** 0.5), -1))
        stored = PictureCodes(model.tokenizer_identity(), len(model.codebook()), grids)
        return {**given, CODES_FIELD: write_codes(stored)}

    return write_shards(folder, [len(numbers)], fields=fields)


def played(family: str, written, way: dict[str, Any], *, stored: bool):
    """Of all steps: losses of the rows of each pass; candidates of the buffer, with their losses and those of the undisturbed
    pictures; and {term: whether its filled rows have stored codes}."""
    folder, shards = written(family)
    model = loaded(family, folder)
    if stored:
        model.use_stored_codes(partial=False)
    compared = {"hardness": "gap"}
    game = Played(model, shards, geometry="fit", buffer=compared, **{"adversary": ADVERSARIES["perturber"], **way})
    losses, offered, coded = [], [], []

    def watch(inputs, output):
        losses.append(output.loss_sum.detach())
        known = inputs.coded or [False] * len(inputs.counts)
        for request in game.plan.of_pass(inputs.pass_name):
            at = game.plan.rows_at(inputs.pass_name, request.term)
            coded[-1][request.term] = [row for row, count in zip(known[at], inputs.counts[at].tolist(), strict=True) if count]

    for _ in range(STEPS):
        coded.append({})
        game.step(watch)
        for _, _, pictures, sums, _, _, undisturbed in game.offered:
            offered += [pictures, sums, undisturbed.losses]
    return losses, offered, coded


@pytest.mark.parametrize("family", ["emu3", "janus"])
@pytest.mark.parametrize("way", WAYS, ids=named)
def test_the_game_is_the_same_with_stored_codes(written, family, way):
    """Every loss and every candidate of the buffer."""
    losses, offered, coded = played(family, written, way, stored=True)
    expected, expected_offers, none = played(family, written, way, stored=False)
    assert len(losses) == len(expected) and len(offered) == len(expected_offers) == 3 * STEPS
    for ours, theirs in zip([*losses, *offered], [*expected, *expected_offers], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not any(any(known) for step in none for known in step.values())
    shown = family == "emu3"  # a vision tower reads the sources of Janus
    for number, step in enumerate(coded):
        assert step["clean"] == [shown] * 2 and step["hard"] == [False] * (2 if number else 0)
        if way["mode"] == "simultaneous":
            assert step["adversarial"] == [shown and way.get("path") == "embedding"] * 3  # there the picture is the source
        if "redraw" in way:
            assert step["pixel"] == [True] * 3


@pytest.mark.parametrize("family", ["emu3", "janus"])
def test_the_picture_to_redraw_has_the_codes_of_its_sample(written, family):
    """The generate pass that redraws it encodes nothing, and the hidden states are those of an encoded picture."""
    folder, shards = written(family)
    model = loaded(family, folder)
    model.use_stored_codes(partial=False)
    game = Played(model, shards, geometry="fit")
    redraw = game.attack().redraw
    assert redraw.target_coded == [True] * 3 and bool(redraw.source_coded) == (family == "emu3")
    assert torch.equal(redraw.target_codes, model.encode_target(redraw.targets))
