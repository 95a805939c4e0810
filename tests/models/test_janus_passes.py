"""The two passes of Janus: losses, masks, dummy rows, gradients."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.causal import masks
from megaunigame.models.causal.model import place
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, understand

FAMILY = "janus"


def test_every_parameter_takes_part_in_a_text_only_batch(model):
    model(understand(model, UnderstandRow([], TURNS[:1]))).loss_sum.sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None and ".generation_" not in n]
    assert not missing
    assert all((p.grad == 0).all() for n, p in model.named_parameters() if n.startswith(("model.aligner", "model.vision")))
    assert any((p.grad != 0).any() for n, p in model.named_parameters() if n.startswith("model.language_model"))


def test_the_gradient_into_the_source_is_scaled_and_nothing_else(model, picture):
    def measured(*factors):
        rows = [GenerateRow("the same", picture(i), source=picture(9), source_gradient=f) for i, f in enumerate(factors)]
        model.zero_grad()
        loss = model(generate(model, *rows)).loss_sum
        loss.sum().backward()
        tower, table = model.model.vision_model.embeddings.patch_embedding.weight, model.model.generation_embeddings.weight
        return loss.detach(), tower.grad.clone(), table.grad.clone()

    loss, tower, table = measured(1.0)
    tenth = measured(0.1)
    assert torch.equal(tenth[0], loss) and torch.equal(tenth[2], table)
    torch.testing.assert_close(tenth[1], 0.1 * tower)
    both, first = measured(1.0, 1.0)[1], measured(1.0, 0.0)[1]
    second = measured(0.0, 1.0)[1]
    torch.testing.assert_close(first + second, both, msg="a factor belongs to its own row")


def test_generate_returns_the_states_the_head_reads(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), None)
    output = model(inputs, predict=True)
    assert output.hidden.shape == (2, 16, 64)
    assert torch.equal(output.predictions, model.model.generation_head(output.hidden).argmax(-1))
    codes = model.encode_target(inputs.targets)[0]
    assert codes.shape == (16,)
    logits = model.model.generation_head(output.hidden)[0]
    expected = torch.nn.functional.cross_entropy(logits, codes, reduction="sum")
    assert output.loss_sum[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_images_of_a_row_fill_its_image_positions_in_order():
    visual = torch.arange(1.0, 13).view(2, 3, 2, 1)
    valid = torch.tensor([[True, False, True], [False, True, False]])
    positions = torch.tensor([[True, True, False, True, True], [False, True, True, False, False]])
    placed = place(torch.zeros(2, 5, 1), visual, valid, positions)
    assert placed[..., 0].tolist() == [[1, 2, 0, 5, 6], [0, 9, 10, 0, 0]]


def test_segment_positions_restart_after_the_prefix():
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 0]])
    attention = torch.tensor([[True] * 7 + [False]])
    assert masks.segment_positions(attention, segments)[0, :7].tolist() == [0, 1, 2, 3, 2, 3, 4]
