"""The two passes of every family: losses, padding, dummy rows, gradients, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megaunigame.errors import ModelError
from megaunigame.step.inputs import IGNORE
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, counted_calls, generate, left_padded, states, understand


def test_collated_rows_say_where_their_labels_and_their_padding_are(model, picture):
    asked = understand(model, UnderstandRow([picture(0)], TURNS[:1]), None, UnderstandRow([], TURNS))
    for labels, positions in zip(asked.labels, asked.label_positions, strict=True):
        assert positions[positions > 0].tolist() == (labels != IGNORE).nonzero().squeeze(1).tolist()
    assert asked.counts.tolist() == (asked.labels != IGNORE).sum(1).tolist() and not asked.front_padding
    padded = set()
    for letters in range(1, 17):
        row = GenerateRow("x" * letters, picture(0))
        drawn, with_a_dummy = generate(model, row), generate(model, row, None)
        assert drawn.front_padding == (not drawn.attention[0, 0]) and with_a_dummy.front_padding
        padded.add(drawn.front_padding)
    assert padded == {True, False}


def test_only_codes_are_predicted(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)))
    if model.has_codes:
        assert model.predict(inputs).shape == (1, model.codes_per_image)
    else:
        with pytest.raises(ModelError, match="predicts no codes in its generate pass"):
            model.predict(inputs)
    with pytest.raises(TypeError, match="has no pass for str"):
        model("generate", inputs)
    with pytest.raises(ValueError, match="prompts for `sample`: they have no targets"):
        model(model.processor.generate_prompts(["a cube"]))


def test_the_loss_is_the_sum_over_the_labeled_positions(model, picture):
    """Token 0 is a label like any other; predictions are for their own position."""
    rows = UnderstandRow([picture(0)], TURNS[:2]), UnderstandRow([], TURNS[:2]), UnderstandRow([], TURNS), None
    inputs = understand(model, *rows)
    inputs.labels[1][inputs.labels[1] != IGNORE] = torch.arange(int(inputs.counts[1]))
    inputs.label_positions = label_positions(inputs.labels)
    with torch.no_grad():
        logits = model.lm_head(states(model, inputs))[:, :-1]
        outputs = model(inputs), model(inputs, predict=True)
    losses = F.cross_entropy(logits.transpose(1, 2), inputs.labels[:, 1:], ignore_index=IGNORE, reduction="none").sum(1)
    for output in outputs:
        torch.testing.assert_close(output.loss_sum, losses, rtol=1e-5, atol=1e-5)
        assert output.loss_sum[3] == 0
    real = inputs.attention[:, 1:]
    assert torch.equal(outputs[1].predictions[:, 1:][real], logits.argmax(-1)[real])


def test_images_are_seen(model, picture):
    losses = [model(understand(model, UnderstandRow([picture(seed)], TURNS[:1]))).loss_sum.item() for seed in (0, 1)]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_independent_turns_equal_turns_asked_alone(tiny, picture, attention):
    model = tiny.load(attention=attention)
    with torch.no_grad():
        together = model(understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None)).loss_sum
        alone = [model(understand(model, UnderstandRow([picture(0)], [t]))).loss_sum for t in TURNS]
        sequential = model(understand(model, UnderstandRow([picture(0)], TURNS))).loss_sum
    assert together[0].item() == pytest.approx(torch.cat(alone).sum().item(), abs=1e-4, rel=1e-5)
    assert abs(together[0].item() - sequential[0].item()) > 1e-3


def test_padding_side_does_not_matter(model, picture):
    rows = (UnderstandRow([picture(0)], TURNS[:1]), UnderstandRow([picture(1)], TURNS))
    with torch.no_grad():
        right = model(understand(model, *rows)).loss_sum
        left = model(left_padded(understand(model, *rows), extra=5)).loss_sum
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-4)


def test_a_longer_neighbor_does_not_change_a_generate_row(model, picture):
    short, long = GenerateRow("a cube", picture(0)), GenerateRow("a small green cone behind", picture(1), picture(2))
    with torch.no_grad():
        alone, together = (model(generate(model, *rows)) for rows in ((short,), (short, long)))
    torch.testing.assert_close(together.hidden[:1], alone.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.loss_sum[:1], alone.loss_sum, rtol=1e-5, atol=1e-4)


def test_a_pass_gathers_embedding_and_head_once(model, picture):
    """Of a partitioned one, every call is a gather: 2.9 GB each in Emu3.5. One matrix for both is gathered for each use."""
    shared = not list(model.language_model.embed_tokens.parameters())
    rows = GenerateRow("a cube", picture(0), picture(1)), GenerateRow("a ball", picture(2))
    passes = generate(model, *rows), understand(model, UnderstandRow([picture(0)], TURNS), UnderstandRow([], TURNS))
    wanted = understand(model, UnderstandRow([picture(0)], TURNS))
    wanted.images.requires_grad_()
    for inputs in (*passes, wanted):
        read, scored = counted_calls(model.language_model.embed_tokens), counted_calls(model.lm_head)
        model(inputs)
        assert len(read) == 1 and len(scored) <= 1 + shared


def test_causal_rows_need_no_mask(model, picture):
    """Wherever their padding is."""
    given = []
    model.language_model.register_forward_pre_hook(
        lambda _, args, given_: given.append(given_["attention_mask"]), with_kwargs=True
    )
    model(generate(model, GenerateRow("a cube", picture(0)), GenerateRow("its small green depth", picture(1)), None))
    model(understand(model, UnderstandRow([picture(0)], TURNS), UnderstandRow([], TURNS[:1])))
    assert [mask is None for mask in given] == [model.only_causal] * 2


def test_dropped_conditions_are_all_the_same(model, picture):
    other = 1 if model.processor.format.keeps_source else 2
    rows = [GenerateRow(text, picture(0), source=picture(seed), unconditional=True) for text, seed in (("X", 1), ("Y", other))]
    with torch.no_grad():
        outputs = [model(generate(model, row)) for row in rows]
    assert torch.equal(*(output.loss_sum for output in outputs)) and torch.equal(*(output.hidden for output in outputs))


def test_dummy_rows_have_no_loss_and_no_gradient(model, picture):
    def gradients(*rows):
        model.zero_grad()
        inputs_u = understand(model, *[UnderstandRow([picture(0)], TURNS[:1]) if r else None for r in rows])
        inputs_g = generate(model, *[GenerateRow("a cube", picture(1)) if r else None for r in rows])
        losses = torch.stack([model(inputs_u).loss_sum, model(inputs_g).loss_sum])
        losses.sum().backward()
        return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}

    losses, with_dummy = gradients(True, False)
    assert (losses[:, 1] == 0).all() and (losses[:, 0] > 0).all()
    _, without = gradients(True)
    # Not through codes: the path through a second transformer is longer.
    rtol, atol, of_largest = (1e-4, 1e-5, 1e-5) if model.has_codes else (1e-3, 1e-4, 1e-3)
    # The gradient of a bias of keys is 0 but for rounding, which is as small as the sums that cancel out in it are large.
    atol = max(atol, 1e-6 * max(grad.abs().max().item() for grad in without.values())) if not model.has_codes else atol
    for name, grad in with_dummy.items():
        largest = without[name].abs().max().item()
        torch.testing.assert_close(grad, without[name], rtol=rtol, atol=atol + of_largest * largest, msg=name)
    losses, nothing = gradients(False, False)
    assert (losses == 0).all()
    assert all((g == 0).all() for g in nothing.values())


OF_LAST_LAYER = ("self_attn.q_proj", "self_attn.o_proj", "self_attn.q_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NOT_DRAWN = {
    *("model.norm.weight", "model.layers.1.self_attn.q_proj.bias", "model.layers.1.post_attention_layernorm.weight"),
    *(f"model.layers.1.{name}.weight" for name in OF_LAST_LAYER),
}
"""Of BAGEL: what only tokens of the text go through after the last attention that latent tokens read."""


def test_a_source_image_reaches_every_group_of_the_pass_through_the_generate_pass(model, picture):
    model(generate(model, GenerateRow("the same", picture(0), source=picture(1)))).loss_sum.sum().backward()
    for group in model.groups_of_pass(GENERATE, takes_images=True):
        parameters = {n: p for n, p in model.named_parameters() if model.group_of(n) == group}
        reached = [n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0]
        own = [n for n in parameters if n != "lm_head.weight" and not (model.name == "bagel" and n in NOT_DRAWN)]
        # A bias of keys moves all scores of a row alike; a softmax does not see it.
        assert set(own) - set(reached) <= {n for n in own if n.endswith("k_proj.bias")}, group


def test_bfloat16_is_finite_and_near_float32(tiny, picture):
    """What is drawn is the same to the last bit: the frozen tokenizer stays in float32."""
    losses, targets = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.load(dtype=dtype)
        drawn = model(generate(model, GenerateRow("a cube", picture(0), picture(1)), None))
        inputs = understand(model, UnderstandRow([picture(0)], TURNS, independent=True), None)
        asked = model(inputs)
        pixels = [model.decode(drawn.hidden, anchor=anchor).pixels for anchor in (None, drawn.target)]
        inputs.images = model.as_source(pixels[0]).unsqueeze(1)
        total = asked.loss_sum.sum() + drawn.loss_sum.sum() + sum(p.mean() for p in pixels)
        (total + model(inputs).loss_sum.sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert all(torch.isfinite(p).all() for p in pixels)
        losses.append(torch.stack([asked.loss_sum, drawn.loss_sum]).detach())
        targets.append(drawn.target)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.0)
    torch.testing.assert_close(targets[1], targets[0], rtol=0, atol=0)


@pytest.mark.parametrize("pass_name", [UNDERSTAND, GENERATE])
def test_checkpointing_changes_no_gradient(tiny, picture, pass_name):
    grads = []
    for checkpointing in (False, True):
        model = tiny.load(gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        rows = {
            UNDERSTAND: understand(model, UnderstandRow([picture(0)], TURNS)),
            GENERATE: generate(model, GenerateRow("a cube", picture(0), picture(1))),
        }
        model(rows[pass_name]).loss_sum.sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert all(layer.gradient_checkpointing == checkpointing for layer in model.language_model.layers)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6, msg=name)
