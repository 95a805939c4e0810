"""The two passes of OpenUni: losses, padding, gradients."""

from __future__ import annotations

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from megaunigame.models.diffusion import flow
from megaunigame.step.rows import GenerateRow
from tests.models.shared import built, generate

FAMILY = "openuni"


def test_the_loss_is_the_squared_error_of_the_velocity(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1), source=picture(2)))
    latents = model.encode_target(inputs.targets)
    u, noise = torch.tensor([0.2, 0.9]), torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.match(inputs, latents, u, noise)
        for row, sigma in enumerate((0.8, 0.1)):
            noisy = (1 - sigma) * latents[row] + sigma * noise[row]
            velocity = model.velocity(noisy[None], torch.tensor([1000 * sigma]), model.condition(output.hidden[row, None]))
            expected = (velocity[0] - (noise[row] - latents[row])).square().sum().item()
            assert output.loss_sum[row].item() == pytest.approx(expected, rel=1e-4)
    assert latents.shape == (2, 4, 8, 8) and output.hidden.shape == (2, 6, 64)
    assert inputs.counts.tolist() == [4 * 8 * 8] * 2 and torch.equal(output.target, latents)


def test_the_transformer_sees_times_in_its_own_scale(model, picture, monkeypatch):
    config, forward, seen = dict(model.dit.config), model.dit.forward, []

    def noting(*given, timestep, **more):
        seen.append(timestep)
        return forward(*given, timestep=timestep, **more)

    monkeypatch.setattr(model.dit, "_internal_dict", FrozenDict({**config, "timestep_scale": 0.25}))
    monkeypatch.setattr(model.dit, "forward", noting)
    inputs = generate(model, GenerateRow("a cube", picture(0)))
    latents = model.encode_target(inputs.targets)
    with torch.no_grad():
        model.match(inputs, latents, torch.tensor([0.2]), torch.zeros_like(latents))
    assert seen[0].tolist() == pytest.approx([200.0])  # level 0.8 of 1000, a quarter of it


def test_a_shift_moves_levels_towards_noise():
    u = torch.tensor([0.0, 0.5, 0.9999])
    assert flow.levels(u, shift=1.0).tolist() == pytest.approx([1.0, 0.5, 0.001])
    assert flow.levels(u, shift=3.0).tolist() == pytest.approx([1.0, 0.75, 0.003 / 1.002], rel=1e-4)


def test_training_draws_from_the_global_generator_and_evaluation_does_not(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1)))

    def loss(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(inputs).loss_sum

    assert torch.equal(loss(0), loss(1))
    model.train()
    assert torch.equal(loss(0), loss(0)) and not torch.equal(loss(0), loss(1))


def test_without_a_source_the_understanding_side_gets_a_zero_gradient(model, picture):
    model(generate(model, GenerateRow("a cube", picture(0)))).loss_sum.sum().backward()
    seeing = [p for n, p in model.named_parameters() if model.group_of(n) in model.seeing]
    assert seeing and all(p.grad is not None and (p.grad == 0).all() for p in seeing)


def test_padding_side_does_not_matter_to_the_queries(model):
    with torch.no_grad():
        prompt = model.processor.generate_prompts(["a cube"])
        embeds, real = model.embed(prompt), prompt.attention
        rolled = [torch.cat([x[:, real[0]], x[:, ~real[0]]], dim=1) for x in (embeds, real)]
        states = [model.query_states(*pair) for pair in ((embeds, real), rolled)]
    assert not real.all()
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


def test_dropped_conditions_are_what_guidance_uses(model, picture):
    with torch.no_grad():
        dropped = model(generate(model, GenerateRow("X", picture(0), source=picture(1), unconditional=True)))
        both = model._sample_states(model.processor.generate_prompts(["a cube"]), guided=True)
    torch.testing.assert_close(both[1:], dropped.hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_connector_and_transformer(tiny, checkpointing):
    model = built(tiny.family, tiny.path, max_length=96, gradient_checkpointing=checkpointing)
    assert model.transformer.gradient_checkpointing == checkpointing
    assert all(layer.gradient_checkpointing == checkpointing for layer in model.connector.layers)
