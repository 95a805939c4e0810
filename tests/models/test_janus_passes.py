"""The two passes of Janus: losses, masks, dummy rows, gradients."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.causal import masks
from megaunigame.models.causal.model import place
from megaunigame.models.janus import Janus
from megaunigame.step.inputs import IGNORE
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, left_padded, understand


def test_loss_is_the_sum_over_the_labelled_positions(model, picture):
    inputs = understand(model, UnderstandRow([picture(0)], TURNS[:2]), UnderstandRow([], TURNS[1:2]))
    with torch.no_grad():
        losses = model(UNDERSTAND, inputs).loss_sum
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention))
    log_probabilities = logits.log_softmax(-1)
    for row in range(2):
        expected = sum(
            -log_probabilities[row, t - 1, label].item()
            for t, label in enumerate(inputs.labels[row].tolist())
            if label != IGNORE
        )
        assert losses[row].item() == pytest.approx(expected, rel=1e-5)


def test_images_are_seen(model, picture):
    losses = [
        model(UNDERSTAND, understand(model, UnderstandRow([picture(seed)], TURNS[:1]))).loss_sum.item() for seed in (0, 1)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_independent_turns_equal_turns_asked_alone(folder, picture, attention):
    model = Janus.load(folder, max_length=128, attention=attention)
    with torch.no_grad():
        together = model(UNDERSTAND, understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None)).loss_sum
        alone = [model(UNDERSTAND, understand(model, UnderstandRow([picture(0)], [t]))).loss_sum for t in TURNS]
        sequential = model(UNDERSTAND, understand(model, UnderstandRow([picture(0)], TURNS))).loss_sum
    assert together[0].item() == pytest.approx(torch.cat(alone).sum().item(), abs=1e-4, rel=1e-5)
    assert abs(together[0].item() - sequential[0].item()) > 1e-3


def test_padding_side_does_not_matter(model, picture):
    rows = (UnderstandRow([picture(0)], TURNS[:1]), UnderstandRow([picture(1)], TURNS))
    with torch.no_grad():
        right = model(UNDERSTAND, understand(model, *rows)).loss_sum
        left = model(UNDERSTAND, left_padded(understand(model, *rows), extra=5)).loss_sum
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-4)


def test_a_longer_neighbour_does_not_change_a_generate_row(model, picture):
    short, long = GenerateRow("a cube", picture(0)), GenerateRow("a small green cone behind", picture(1), picture(2))
    with torch.no_grad():
        alone = model(GENERATE, generate(model, short)).loss_sum
        beside = model(GENERATE, generate(model, short, long)).loss_sum
    torch.testing.assert_close(beside[:1], alone, rtol=1e-5, atol=1e-4)


def test_dummy_rows_have_no_loss_and_no_gradient(model, picture):
    def gradients(*rows):
        model.zero_grad()
        inputs_u = understand(model, *[UnderstandRow([picture(0)], TURNS[:1]) if r else None for r in rows])
        inputs_g = generate(model, *[GenerateRow("a cube", picture(1)) if r else None for r in rows])
        losses = torch.stack([model(UNDERSTAND, inputs_u).loss_sum, model(GENERATE, inputs_g).loss_sum])
        losses.sum().backward()
        return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}

    losses, with_dummy = gradients(True, False)
    assert (losses[:, 1] == 0).all() and (losses[:, 0] > 0).all()
    _, without = gradients(True)
    for name, grad in with_dummy.items():
        torch.testing.assert_close(grad, without[name], rtol=1e-4, atol=1e-5, msg=name)
    losses, nothing = gradients(False, False)
    assert (losses == 0).all()
    assert all((g == 0).all() for g in nothing.values())


def test_every_parameter_takes_part_in_a_text_only_batch(model):
    model(UNDERSTAND, understand(model, UnderstandRow([], TURNS[:1]))).loss_sum.sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None and ".generation_" not in n]
    assert not missing
    assert all((p.grad == 0).all() for n, p in model.named_parameters() if n.startswith(("model.aligner", "model.vision")))
    assert any((p.grad != 0).any() for n, p in model.named_parameters() if n.startswith("model.language_model"))


def test_a_source_image_reaches_the_tower_through_the_generate_pass(model, picture):
    inputs = generate(model, GenerateRow("the same", picture(0), source=picture(1)))
    model(GENERATE, inputs).loss_sum.sum().backward()
    assert model.model.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0


def test_the_gradient_into_the_source_is_scaled_and_nothing_else(model, picture):
    def measured(*factors):
        rows = [GenerateRow("the same", picture(i), source=picture(9), source_gradient=f) for i, f in enumerate(factors)]
        model.zero_grad()
        loss = model(GENERATE, generate(model, *rows)).loss_sum
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


def test_unconditional_rows_forget_text_and_source(model, picture):
    with torch.no_grad():
        dropped = [
            model(GENERATE, generate(model, GenerateRow(text, picture(0), source=picture(seed), unconditional=True)))
            for text, seed in (("X", 1), ("Y", 2))
        ]
    assert torch.equal(dropped[0].loss_sum, dropped[1].loss_sum)


def test_generate_returns_the_states_the_head_reads(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), None)
    output = model(GENERATE, inputs, predict=True)
    assert output.hidden.shape == (2, 16, 64)
    assert torch.equal(output.predictions, model.model.generation_head(output.hidden).argmax(-1))
    codes = model.encode_target(inputs.targets)[0]
    logits = model.model.generation_head(output.hidden)[0]
    expected = torch.nn.functional.cross_entropy(logits, codes, reduction="sum")
    assert output.loss_sum[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_predictions_of_the_understand_pass_are_for_their_own_position(model, picture):
    inputs = understand(model, UnderstandRow([picture(0)], TURNS))
    with torch.no_grad():
        output = model(UNDERSTAND, inputs, predict=True)
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention))
        plain = model(UNDERSTAND, inputs)
    assert torch.equal(output.predictions[:, 1:], logits[:, :-1].argmax(-1))
    torch.testing.assert_close(output.loss_sum, plain.loss_sum)


def test_images_of_a_row_fill_its_slots_in_order():
    visual = torch.arange(1.0, 13).view(2, 3, 2, 1)
    valid = torch.tensor([[True, False, True], [False, True, False]])
    slots = torch.tensor([[True, True, False, True, True], [False, True, True, False, False]])
    placed = place(torch.zeros(2, 5, 1), visual, valid, slots)
    assert placed[..., 0].tolist() == [[1, 2, 0, 5, 6], [0, 9, 10, 0, 0]]


def test_segment_positions_restart_behind_the_prefix():
    segments = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 0]])
    attention = torch.tensor([[True] * 7 + [False]])
    assert masks.segment_positions(attention, segments)[0, :7].tolist() == [0, 1, 2, 3, 2, 3, 4]


def test_bfloat16_is_finite_and_near_float32(folder, picture):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = Janus.load(folder, max_length=96, dtype=dtype)
        rows = generate(model, GenerateRow("a cube", picture(0), picture(1)), None)
        output = model(UNDERSTAND, understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None))
        generated = model(GENERATE, rows)
        pixels = model.decode(generated.hidden).pixels
        (output.loss_sum.sum() + generated.loss_sum.sum() + pixels.mean()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert torch.isfinite(pixels).all()
        losses.append(output.loss_sum.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.0)


def test_checkpointing_changes_no_gradient(folder, picture):
    grads = []
    for checkpointing in (False, True):
        model = Janus.load(folder, max_length=96, gradient_checkpointing=checkpointing).train()
        model(UNDERSTAND, understand(model, UnderstandRow([picture(0)], TURNS))).loss_sum.sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        layers = model.language_model.layers
        assert all(layer.gradient_checkpointing == checkpointing for layer in layers)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6, msg=name)
