"""One new folder is all that a family takes."""

from __future__ import annotations

import pytest
import torch

from megaunigame.config import ModelConfig
from megaunigame.engine.parameters import choose_trainable
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import available, find
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.extending.conftest import write_patches
from tests.models.conftest import picture  # noqa: F401
from tests.models.shared import PLAN, built, generate, understand


@pytest.fixture
def family(examples):
    return find("models", "patches", UnifiedModel)


@pytest.fixture
def folder(family, tmp_path):
    return write_patches(tmp_path)


def test_one_folder_is_a_family(family, folder, picture):  # noqa: F811
    assert "patches" in available("models", UnifiedModel) and family.language_layers(str(folder)) == 1
    model = family.load(folder, max_length=64).train()
    asked = model(understand(model, UnderstandRow([picture(0)], [("what is this ?", "a ball")]), None))
    drawn = model(generate(model, GenerateRow("a ball", picture(0), source=picture(1)), None))
    for output in (asked, drawn):
        assert output.loss_sum[0] > 0 and output.loss_sum[1] == 0
    pixels = model.decode(drawn.hidden, anchor=drawn.target).pixels
    (asked.loss_sum.sum() + drawn.loss_sum.sum() + pixels.mean()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    sampled = model.sample(
        model.processor.generate_prompts(["a ball"]), guidance=2.0, temperature=1.0, generator=torch.Generator()
    )
    assert sampled.shape == (1, 3, 16, 16)


def test_a_wrong_group_is_answered_with_those_of_the_family(family, folder):
    model = built(family, folder, max_length=64)
    with pytest.raises(
        ConfigError, match=r"Unknown group in model.groups 'lmm'. Did you mean 'lm'\? Legal: vision, lm, drawing"
    ):
        choose_trainable(model, ModelConfig(family="patches", train="full", groups=["lmm"]), PLAN, seed=0)
    choose_trainable(model, ModelConfig(family="patches", train="full"), PLAN, seed=0)
    assert {model.group_of(n) for n, p in model.named_parameters() if p.requires_grad} == {"lm", "drawing"}


def test_the_default_precision_runs(family, folder, picture):  # noqa: F811
    """Pictures are float32, weights bf16."""
    model = family.load(folder, max_length=64, dtype=torch.bfloat16)
    asked = model(understand(model, UnderstandRow([picture(0)], [("what is this ?", "a ball")]), None))
    drawn = model(generate(model, GenerateRow("a ball", picture(0), source=picture(1)), None))
    assert torch.isfinite(torch.cat([asked.loss_sum, drawn.loss_sum])).all()
