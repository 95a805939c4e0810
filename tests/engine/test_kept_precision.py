"""What the engine leaves as it is: buffers, processors and frozen tokenizers of a bf16 run are those of a plain fp32 model."""

from __future__ import annotations

import itertools

import pytest
import torch

from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow
from tests.engine.learners import learner_of
from tests.models.shared import FAMILIES, generate
from tests.multi_process.tiny_run import FOLDERS, write_families

PLAN = plan_from([RowRequest("u", UNDERSTAND, "train", 1), RowRequest("g", GENERATE, "train", 5)])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_families(tmp_path_factory.mktemp("kept"))


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_and_targets_are_those_of_a_plain_load(family, home, world):
    """Every engine of one family; the white picture lies at the edge of the range, the others anywhere."""
    plain = find("models", family, UnifiedModel).load(str(home / FOLDERS[family]), max_length=96)
    buffers = {n: b for n, b in plain.named_buffers() if b.is_floating_point()}
    assert buffers, "no rotary frequencies, nothing is compared"
    pictures = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    pictures[0] = 255
    rows = [GenerateRow(target=picture, prompt="a ball") for picture in pictures]
    expected = generate(plain, *rows).targets
    codes = plain.encode_target(expected)
    assert codes.dtype == torch.int64 or codes.std() > 0
    for stage, precision, train in itertools.product((2, 3), ("bf16", "fp32"), ("lora", "full")):
        case = f"ZeRO-{stage}, {precision}, {train}"
        settings = {"family": family, "train": train, "lora": {"rank": 2, "alpha": 4}}
        model = learner_of(home, world, PLAN, stage, precision, **settings)[0].module
        ours = dict(model.named_buffers())
        for name, buffer in buffers.items():
            assert ours[name].dtype == buffer.dtype and torch.equal(ours[name], buffer), (case, name)
        targets = generate(model, *rows).targets
        assert torch.equal(targets, expected), case
        assert torch.equal(model.encode_target(targets), codes), case
