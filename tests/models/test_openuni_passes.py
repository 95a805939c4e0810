"""The two passes of OpenUni: losses, dummy rows, padding, gradients."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.openuni import OpenUni, flow
from megaunigame.step.requests import GENERATE
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, built, generate, understand


def test_the_loss_is_the_squared_error_of_the_velocity(openuni, picture):
    inputs = generate(openuni, GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1), source=picture(2)))
    latents = openuni.encode_target(inputs.targets)
    u, noise = torch.tensor([0.2, 0.9]), torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = openuni.match(inputs, latents, u, noise)
        for row, sigma in enumerate((0.8, 0.1)):
            noisy = (1 - sigma) * latents[row] + sigma * noise[row]
            velocity = openuni.velocity(noisy[None], torch.tensor([1000 * sigma]), openuni.condition(output.hidden[row, None]))
            expected = (velocity[0] - (noise[row] - latents[row])).square().sum().item()
            assert output.loss_sum[row].item() == pytest.approx(expected, rel=1e-4)
    assert latents.shape == (2, 4, 8, 8) and output.hidden.shape == (2, 6, 64)
    assert inputs.counts.tolist() == [4 * 8 * 8] * 2 and torch.equal(output.target, latents)


def test_a_shift_moves_levels_towards_noise():
    u = torch.tensor([0.0, 0.5, 0.9999])
    assert flow.levels(u, shift=1.0).tolist() == pytest.approx([1.0, 0.5, 0.001])
    assert flow.levels(u, shift=3.0).tolist() == pytest.approx([1.0, 0.75, 0.003 / 1.002], rel=1e-4)


def test_training_draws_from_the_global_generator_and_evaluation_does_not(openuni, picture):
    inputs = generate(openuni, GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1)))

    def loss(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return openuni(inputs).loss_sum

    assert torch.equal(loss(0), loss(1))
    openuni.train()
    assert torch.equal(loss(0), loss(0)) and not torch.equal(loss(0), loss(1))


def test_dummy_rows_change_no_gradient_of_given_levels(openuni, picture):
    def gradients(*rows):
        openuni.zero_grad()
        inputs_u = understand(openuni, *[UnderstandRow([picture(0)], TURNS[:1]) if r else None for r in rows])
        inputs_g = generate(openuni, *[GenerateRow("a cube", picture(1)) if r else None for r in rows])
        latents = openuni.encode_target(inputs_g.targets)
        noise = torch.ones(1, *latents.shape[1:]).expand_as(latents)
        generated = openuni.match(inputs_g, latents, torch.full((len(rows),), 0.5), noise).loss_sum
        losses = torch.stack([openuni(inputs_u).loss_sum, generated])
        losses.sum().backward()
        return losses.detach(), {n: p.grad.clone() for n, p in openuni.named_parameters()}

    losses, with_dummy = gradients(True, False)
    assert (losses[:, 1] == 0).all() and (losses[:, 0] > 0).all()
    _, without = gradients(True)
    for name, grad in with_dummy.items():
        largest = without[name].abs().max().item()
        torch.testing.assert_close(grad, without[name], rtol=1e-3, atol=1e-4 + 1e-3 * largest, msg=name)
    losses, nothing = gradients(False, False)
    assert (losses == 0).all()
    assert all((g == 0).all() for g in nothing.values())


def test_a_source_image_reaches_the_understanding_side_through_the_generate_pass(openuni, picture):
    openuni(generate(openuni, GenerateRow("the same", picture(0), source=picture(1)))).loss_sum.sum().backward()
    for group in openuni.groups_of_pass(GENERATE, takes_images=True):
        parameters = {n: p for n, p in openuni.named_parameters() if openuni.group_of(n) == group}
        reached = [n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0]
        own = [n for n in parameters if n != "lm_head.weight"]
        # A bias of keys moves all scores of a row alike; a softmax does not see it.
        assert set(own) - set(reached) <= {n for n in own if n.endswith("k_proj.bias")}, group


def test_without_a_source_the_understanding_side_gets_a_zero_gradient(openuni, picture):
    openuni(generate(openuni, GenerateRow("a cube", picture(0)))).loss_sum.sum().backward()
    seeing = [p for n, p in openuni.named_parameters() if openuni.group_of(n) in openuni.seeing]
    assert seeing and all(p.grad is not None and (p.grad == 0).all() for p in seeing)


def test_padding_side_does_not_matter_to_the_queries(openuni):
    with torch.no_grad():
        prompt = openuni.processor.generate_prompts(["a cube"])
        embeds, real = openuni.embed(prompt), prompt.attention
        rolled = [torch.cat([x[:, real[0]], x[:, ~real[0]]], dim=1) for x in (embeds, real)]
        states = [openuni.query_states(*pair) for pair in ((embeds, real), rolled)]
    assert not real.all()
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


def test_dropped_conditions_are_all_the_same_and_what_guidance_uses(openuni, picture):
    dropped = [
        generate(openuni, GenerateRow(text, picture(0), source=picture(seed), unconditional=True))
        for text, seed in (("X", 1), ("Y", 2))
    ]
    assert torch.equal(dropped[0].tokens, dropped[1].tokens) and not dropped[0].image_positions.any()
    words = openuni.processor.tokenizer.decode(dropped[0].tokens[0][dropped[0].attention[0]].tolist())
    assert words == "<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n<img>"
    with torch.no_grad():
        states = [openuni(inputs).hidden for inputs in dropped]
        both = openuni._sample_states(openuni.processor.generate_prompts(["a cube"]), guided=True)
    assert torch.equal(*states)
    torch.testing.assert_close(both[1:], states[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_connector_and_transformer(openuni_path, checkpointing):
    model = built(OpenUni, openuni_path, max_length=96, gradient_checkpointing=checkpointing)
    assert model.transformer.gradient_checkpointing == checkpointing
    assert all(layer.gradient_checkpointing == checkpointing for layer in model.connector.layers)
