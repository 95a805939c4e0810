"""What all families do alike in the understand pass and in loading."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megaunigame.models.emu3 import Emu3
from megaunigame.models.janus import Janus
from megaunigame.models.openuni import OpenUni
from megaunigame.step.inputs import IGNORE
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import UNDERSTAND
from megaunigame.step.rows import UnderstandRow
from tests.models.shared import TURNS, understand

FAMILIES = {"folder": Janus, "emu3_path": Emu3, "openuni_path": OpenUni}


@pytest.mark.parametrize("path", FAMILIES)
def test_bfloat16_weights_leave_the_rotary_frequencies_in_float32(request, path):
    model = FAMILIES[path].load(request.getfixturevalue(path), max_length=96, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    frequencies = {name: b.dtype for name, b in model.named_buffers() if name.endswith("inv_freq")}
    assert frequencies and set(frequencies.values()) == {torch.float32}


@pytest.mark.parametrize("path", FAMILIES)
def test_token_0_is_a_label_like_any_other(request, path):
    model = FAMILIES[path].load(request.getfixturevalue(path), max_length=96)
    inputs = understand(model, UnderstandRow([], TURNS[:1]), UnderstandRow([], TURNS[:2]), None)
    inputs.labels[1][inputs.labels[1] != IGNORE] = torch.arange(int(inputs.counts[1]))
    inputs.label_positions = label_positions(inputs.labels)
    with torch.no_grad():
        output = model(UNDERSTAND, inputs)
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention))[:, :-1]
        everywhere = model(UNDERSTAND, inputs, predict=True)
    losses = F.cross_entropy(logits.transpose(1, 2), inputs.labels[:, 1:], ignore_index=IGNORE, reduction="none").sum(1)
    torch.testing.assert_close(output.loss_sum, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(everywhere.loss_sum, losses, rtol=1e-5, atol=1e-5)
    assert losses[0] != losses[1] and output.loss_sum[2] == 0
    real = inputs.attention[:, 1:]
    assert torch.equal(everywhere.predictions[:, 1:][real], logits.argmax(-1)[real])
