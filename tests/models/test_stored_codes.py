"""Rows with stored codes: the same passes without the tokenizer, and a refusal of codes that are not this model's."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from megaunigame.config import StreamConfig
from megaunigame.data.codes import UnreadCodes, write_codes
from megaunigame.data.decode import CODES_FIELD
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.models.causal.token_codes import TokenCodeModel
from megaunigame.models.emu3 import Emu3
from megaunigame.models.weights.identity import identity
from megaunigame.objectives.generation import Generation
from megaunigame.objectives.understanding import Understanding
from megaunigame.objectives.unigame.paths import about
from megaunigame.step.codes import PictureCodes
from megaunigame.step.inputs import with_images
from megaunigame.step.requests import CROP, FIT, GENERATE, UNDERSTAND, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.data.shard_files import encoded as file_of
from tests.data.shard_files import talk, write_shards
from tests.models.shared import CODE_FAMILIES, TURNS, generate, understand
from tests.models.test_emu3_folder import official_folder

OF_CODES = pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
SOURCES_TOO = pytest.mark.parametrize("tiny", ["emu3"], indirect=True)


@pytest.fixture
def model(tiny):
    model = tiny.load()
    model.use_stored_codes(partial=False)
    return model


def codes_of(model, *pictures, geometries=("fit", "crop"), tokenizer=None) -> PictureCodes:
    """What the tokenizer makes of the pictures, at both sides of the model."""
    processor, grids = model.processor, {}
    for geometry in geometries:
        for side in {processor.image_size, processor.source_size} if model.reads_codes else {processor.image_size}:
            pixels = torch.stack([processor.target_pixels(picture, geometry, side) for picture in pictures])
            codes = model.encode_target(pixels)
            width = int(codes.shape[1] ** 0.5)
            grids[geometry, side] = codes.unflatten(1, (width, width))
    return PictureCodes(tokenizer or model.tokenizer_identity(), len(model.codebook()), grids)


@pytest.fixture
def encoded(model, monkeypatch):
    """The number of pictures of each call of the tokenizer."""
    tokenizer, calls = model.frozen.module, []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    return calls


def wide(picture):
    """A picture whose squares of different geometries differ."""
    return torch.cat([picture(4), picture(5)], dim=2)


@OF_CODES
def test_targets_are_not_encoded(model, encoded, picture):
    shown, other = wide(picture), picture(1)
    stored = codes_of(model, shown)
    encoded.clear()
    rows = [GenerateRow("a cube", shown, target_codes=stored), None, GenerateRow("a ball", shown, target_codes=stored)]
    inputs = generate(model, *rows, GenerateRow("two", other))
    assert inputs.target_coded == [True, True, True, False]
    with torch.no_grad():
        got = model(inputs)
        expected = model(dataclasses.replace(inputs, target_codes=None, target_coded=[]))
    assert encoded == [1, 4]  # the row without codes, then all; no row has a source
    assert torch.equal(got.target[[0, 2, 3]], expected.target[[0, 2, 3]])
    torch.testing.assert_close(got.loss_sum, expected.loss_sum)
    assert got.loss_sum[1] == 0 and got.loss_sum[0] > 0


@OF_CODES
def test_nothing_is_encoded_when_all_rows_have_codes(model, encoded, picture):
    shown = wide(picture)
    stored = codes_of(model, shown)
    encoded.clear()
    own = {"target_codes": stored, "source_codes": stored}
    rows = [GenerateRow("a", shown, shown, **own), GenerateRow("b", shown, shown, unconditional=True, **own), None]
    questions = [UnderstandRow([shown], TURNS, codes=stored), UnderstandRow([], [("why ?", "so")]), None]
    with torch.no_grad():
        model(generate(model, *rows))
        model(understand(model, *questions))
    assert encoded == []


@SOURCES_TOO
def test_questions_about_pictures_with_and_without_codes(model, encoded, picture):
    """Rows of one, two and no pictures; the second row has no codes."""
    pair = [wide(picture), picture(2)]
    stored = codes_of(model, *pair)
    one = codes_of(model, pair[0])
    encoded.clear()
    rows = [
        UnderstandRow(pair, TURNS, codes=stored),
        UnderstandRow([picture(3)], TURNS),
        UnderstandRow(pair[:1], TURNS, codes=one),
    ]
    inputs = understand(model, *rows)
    assert inputs.source_coded == [True, False, True] and inputs.source_codes.shape[:2] == (3, 2)
    with torch.no_grad():
        got = model(inputs)
        assert encoded == [2]  # both places of the second row
        expected = model(dataclasses.replace(inputs, source_codes=None, source_coded=[]))
    torch.testing.assert_close(got.loss_sum, expected.loss_sum)


@SOURCES_TOO
def test_a_gradient_reaches_pictures_of_rows_between_rows_with_codes(model, encoded, picture):
    """As in a pass of clean rows with codes and attacked ones."""
    stored = [codes_of(model, picture(number)) for number in range(3)]
    inputs = understand(model, *(UnderstandRow([picture(n)], TURNS, codes=stored[n]) for n in range(3)))

    def gradient(given):
        images = given.images.clone().requires_grad_()
        changed = dataclasses.replace(given, images=images, gradient_rows=slice(1, 2))
        loss = model(changed).loss_sum
        loss.sum().backward()
        return loss.detach(), images.grad

    encoded.clear()
    loss, found = gradient(inputs)
    assert encoded == []
    expected_loss, expected = gradient(with_images(inputs, inputs.images))
    assert encoded == [1, 1]
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(found, expected)
    assert found[1].abs().max() > 0 and found[0].abs().max() == 0


@SOURCES_TOO
def test_rows_after_attacked_ones_keep_their_own_place_among_rows_with_codes(model, picture):
    stored = [codes_of(model, picture(number)) for number in (0, 1)]
    rows = [UnderstandRow([picture(n)], TURNS, codes=codes) for n, codes in enumerate([*stored, None])]
    inputs = understand(model, *rows)
    assert inputs.source_coded == [True, True, False]
    images = inputs.images.clone().requires_grad_()
    found = model(dataclasses.replace(inputs, images=images, gradient_rows=slice(1, 2))).loss_sum
    torch.testing.assert_close(found, model(with_images(inputs, inputs.images)).loss_sum)


@SOURCES_TOO
def test_a_source_and_a_target_have_each_its_own_codes(model, picture):
    shown, drawn = codes_of(model, picture(0)), codes_of(model, picture(1))
    row = GenerateRow("a cube", picture(1), picture(0), target_codes=drawn, source_codes=shown)
    inputs = generate(model, row)
    processor = model.processor
    assert torch.equal(inputs.target_codes[0], drawn.grids["crop", processor.image_size].flatten())
    assert torch.equal(inputs.source_codes[0, 0], shown.grids["crop", processor.source_size].flatten())
    alone = generate(model, dataclasses.replace(row, source_codes=None))
    assert alone.source_codes is None and alone.target_codes is not None


@SOURCES_TOO
def test_codes_of_pictures_that_were_replaced_are_not_used(model, picture):
    inputs = understand(model, UnderstandRow([picture(0)], TURNS, codes=codes_of(model, picture(0))))
    others = understand(model, UnderstandRow([picture(1)], TURNS))
    with torch.no_grad():
        torch.testing.assert_close(model(with_images(inputs, others.images)).loss_sum, model(others).loss_sum)
        assert (model(inputs).loss_sum - model(others).loss_sum).abs() > 1e-3


@SOURCES_TOO
def test_a_question_about_a_redrawn_picture_has_no_codes(model, picture):
    inputs = understand(model, UnderstandRow([picture(0)], TURNS, codes=codes_of(model, picture(0))))
    redrawn = about(model, inputs, model.processor.target_pixels(picture(1), "fit", 16)[None])
    assert inputs.source_coded == [True] and redrawn.source_codes is None and redrawn.source_coded == []


@OF_CODES
def test_the_geometry_of_a_row_chooses_its_codes(model, picture):
    shown = wide(picture)
    stored = codes_of(model, shown)
    inputs = generate(model, GenerateRow("a cube", shown, target_codes=stored))
    side = model.processor.image_size
    assert torch.equal(inputs.target_codes[0], stored.grids["crop", side].flatten())
    assert not torch.equal(stored.grids["crop", side], stored.grids["fit", side])


@OF_CODES
def test_codes_of_another_tokenizer_end_the_run(model, picture):
    stored = codes_of(model, picture(0), tokenizer="f" * 64)
    needed = model.tokenizer_identity()[:12]
    with pytest.raises(ConfigError, match=f"Sample key has codes of the tokenizer ffffffffffff.*{needed}.*annotate.*=off"):
        generate(model, GenerateRow("a cube", picture(0), target_codes=stored))
    model.use_stored_codes(partial=True)
    with pytest.raises(ConfigError, match="codes of the tokenizer"):
        generate(model, GenerateRow("a cube", picture(0), target_codes=stored))
    model.processor.accepted_codes = None  # model.stored_codes=off
    assert generate(model, GenerateRow("a cube", picture(0), target_codes=stored)).target_codes is None


@OF_CODES
def test_codes_of_another_geometry_or_side(model, picture):
    fit = codes_of(model, picture(0), geometries=["fit"])
    side = model.processor.image_size
    smaller = dataclasses.replace(fit, grids={("crop", side - 4): next(iter(fit.grids.values()))})
    cases = (fit, f"fit at {side} pixels", r"geometries=fit\+crop"), (smaller, f"crop at {side - 4} pixels", "geometries=crop")
    for stored, there, remedy in cases:
        row = GenerateRow("a cube", picture(0), target_codes=stored)
        model.use_stored_codes(partial=False)
        with pytest.raises(ConfigError, match=f"{there}.*needs crop at {side} pixels.*{remedy}, .*stored_codes=partial"):
            generate(model, row)
        model.use_stored_codes(partial=True)
        assert generate(model, row).target_codes is None


@SOURCES_TOO
def test_codes_of_too_few_pictures_or_of_another_grid(model, picture):
    one = codes_of(model, picture(0))
    with pytest.raises(DataError, match="Sample key has 9 codes for each of 1 pictures, and its row needs 9 for each of 2"):
        understand(model, UnderstandRow([picture(0), picture(1)], TURNS, codes=one))
    larger = dataclasses.replace(one, grids={("fit", 12): one.grids["fit", 16]})
    with pytest.raises(DataError, match="has 16 codes for each of 1 pictures, and its row needs 9 for each of 1"):
        understand(model, UnderstandRow([picture(0)], TURNS, codes=larger))


@SOURCES_TOO
def test_codes_that_a_row_cannot_use_are_found_before_it_is_collated(model, picture):
    one = codes_of(model, picture(0))
    check = model.processor.check
    check(UnderstandRow([picture(0)], TURNS, codes=one), FIT, "a")
    check(GenerateRow("a cube", picture(0), picture(0), target_codes=one, source_codes=one), CROP, "a")
    with pytest.raises(DataError, match="Sample a has 9 codes for each of 1 pictures, and its row needs 9 for each of 2"):
        check(UnderstandRow([picture(0), picture(1)], TURNS, codes=one), FIT, "a")
    other = dataclasses.replace(one, grids={square: grid[:, :2] for square, grid in one.grids.items()})
    for row in (GenerateRow("a", picture(0), target_codes=other), GenerateRow("a", picture(0), picture(0), source_codes=other)):
        with pytest.raises(DataError, match="Sample a has .* and its row needs"):
            check(row, CROP, "a")
    check(GenerateRow("a", picture(0), picture(0), unconditional=True, source_codes=other), CROP, "a")  # shows no source
    with pytest.raises(ConfigError, match="needs squash at 16 pixels"):
        check(GenerateRow("a", picture(0), target_codes=one), "squash", "a")


def micro_batches(model, folder):
    """Of rows that ask about, and draw, the pictures of a shard."""
    objectives = Understanding(Understanding.Config(2)), Generation(Generation.Config(1, 1, drop=0.0))
    plan = plan_from([request for objective in objectives for request in objective.rows()])
    makers = {request.term: objective for objective in objectives for request in objective.rows()}
    stream = open_stream("train", StreamConfig(str(folder), window=2), 3)
    return MicroBatches(plan, makers, {"train": stream}, model.processor, 1, 0, 1, 0, 0)


@pytest.fixture
def shards(model, tmp_path, picture):
    """Eight samples of two pictures, with codes for the geometry of each row only. The third has codes of one of the pictures,
    the sixth a damaged field."""
    stored = codes_of(model, picture(0), picture(1))
    if model.reads_codes:
        stored.grids.pop((FIT, model.processor.image_size))
    few = dataclasses.replace(stored, grids={square: grid[:1] for square, grid in stored.grids.items()})
    given = {2: write_codes(few), 5: b"damaged"}
    first, second = (file_of(np.ascontiguousarray(picture(seed).permute(1, 2, 0).numpy())) for seed in (0, 1))
    meta = {"caption": "a cube", "conversations": talk(("<image>\n<image>\nwhich ?", "this"))}
    fields = {"json": json.dumps(meta).encode(), "png": first, "picture2.png": second}
    return write_shards(tmp_path, [8], lambda n: {**fields, CODES_FIELD: given.get(n, write_codes(stored))})


@SOURCES_TOO
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_with_wrong_codes_is_replaced_and_counted(model, shards, workers):
    batches = list(MicroBatchLoader(micro_batches(model, shards), 0, 8, workers))
    reasons = {bad.key: bad.reason for batch in batches for bad in batch.bad}
    assert reasons.keys() == {"0000002", "0000005"}
    assert "codes for each of 1 pictures" in reasons["0000002"] and "codes.bin" in reasons["0000005"]
    for batch in batches:
        assert all(batch.inputs[UNDERSTAND].source_coded) and all(batch.inputs[GENERATE].target_coded)


@OF_CODES
def test_a_run_without_stored_codes_leaves_the_field_unread(model, shards):
    model.processor.accepted_codes = None  # model.stored_codes=off
    dataset = micro_batches(model, shards)
    batches = [dataset[step] for step in range(8)]
    assert {key for batch in batches for key in batch.inputs[UNDERSTAND].keys} >= {"0000002", "0000005"}
    assert not any(batch.bad for batch in batches)
    assert all(batch.inputs[GENERATE].target_codes is batch.inputs[UNDERSTAND].source_codes is None for batch in batches)


@OF_CODES
def test_codes_of_rows_that_need_none_stay_unread(model, picture):
    damaged = UnreadCodes("a", CODES_FIELD, b"x")
    model.processor.check(UnderstandRow([], [("why ?", "so")], codes=damaged), FIT, "a")
    understand(model, UnderstandRow([], [("why ?", "so")], codes=damaged))
    shown = UnderstandRow([picture(0)], TURNS, codes=damaged)
    if model.reads_codes:
        with pytest.raises(DataError, match="Sample 'a': field 'codes.bin'"):
            model.processor.check(shown, FIT, "a")
    else:
        model.processor.check(shown, FIT, "a")
        understand(model, shown)
    with pytest.raises(DataError, match="Sample 'a': field 'codes.bin'"):
        model.processor.check(GenerateRow("a", picture(0), target_codes=damaged), CROP, "a")


@pytest.mark.parametrize("tiny", ["janus"], indirect=True)
def test_sources_of_a_vision_tower_take_no_codes(model, picture):
    stored = codes_of(model, picture(0))
    row = GenerateRow("a cube", picture(0), picture(0), target_codes=stored, source_codes=stored)
    inputs = generate(model, row)
    assert inputs.target_codes is not None and inputs.source_codes is None
    assert understand(model, UnderstandRow([picture(0)], TURNS, codes=stored)).source_codes is None


@pytest.mark.parametrize("tiny", ["openuni"], indirect=True)
def test_a_family_without_codes(tiny, picture):
    model = tiny.load()
    model.use_stored_codes(partial=False)
    assert model.processor.accepted_codes is None
    with pytest.raises(ModelError, match="OpenUni draws no codes"):
        model.tokenizer_identity()


# Identity


@SOURCES_TOO
def test_two_layouts_and_two_precisions_are_one_tokenizer(model, tiny, tmp_path):
    official_folder(tmp_path, tiny)
    official = Emu3.load(tmp_path, max_length=160)
    assert len(model.tokenizer_identity()) == 64
    assert official.tokenizer_identity() == model.tokenizer_identity()
    for parameter in (rounded := tiny.load().frozen.module).parameters():
        parameter.data = parameter.data.bfloat16()
    once = identity(rounded)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.float()
    assert identity(rounded) == once != model.tokenizer_identity()


@OF_CODES
def test_another_weight_or_setting_is_another_tokenizer(model):
    tokenizer, before = model.frozen.module, model.tokenizer_identity()
    norm = next(layer for layer in tokenizer.modules() if isinstance(layer, torch.nn.GroupNorm))
    norm.eps *= 2
    other = model.tokenizer_identity()
    norm.eps /= 2
    assert model.tokenizer_identity() == before != other
    list(tokenizer.parameters())[3].data.view(-1)[0] += 1e-3
    assert model.tokenizer_identity() != before


@pytest.mark.parametrize(
    "other",
    [{"stride": 2}, {"padding": 0}, {"dilation": 2}, {"padding_mode": "reflect"}],
    ids=lambda other: next(iter(other)),
)
def test_another_setting_of_a_convolution_is_another_tokenizer(other):
    settings = {"kernel_size": 3, "padding": 1}
    plain, changed = (torch.nn.Conv2d(2, 2, **{**settings, **given}) for given in ({}, other))
    changed.load_state_dict(plain.state_dict())
    assert identity(torch.nn.Sequential(changed)) != identity(torch.nn.Sequential(plain))


def holder(**tensors):
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, torch.nn.Parameter(tensor))
    return module


def test_names_and_shapes_of_tensors_tell_tokenizers_apart():
    numbers = torch.arange(6.0)
    given = [
        holder(a=numbers[:4], b=numbers[4:]),
        holder(a=numbers[:4], c=numbers[4:]),
        holder(a=numbers[:2], b=numbers[2:]),
        holder(a=numbers[:4].view(2, 2), b=numbers[4:]),
        holder(a=numbers),
    ]
    assert len({identity(module) for module in given}) == len(given)
    assert identity(given[0]) == identity(holder(a=numbers[:4], b=numbers[4:]))


def test_families_that_read_codes_say_so():
    assert Emu3.reads_codes and TokenCodeModel.reads_codes


def test_the_same_weights_with_another_order_of_codes_are_another_tokenizer(tiny_of):
    model = tiny_of("chameleon").load()
    once = model.tokenizer_identity()
    tokenizer = model.frozen.module
    tokenizer.codes.copy_(tokenizer.codes.flip(0))
    assert model.tokenizer_identity() != once
