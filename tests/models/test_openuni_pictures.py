"""Latents to pixels, one-step decoding, sampling and answering."""

from __future__ import annotations

import pytest
import torch

from megaunigame.step.rows import UnderstandRow
from tests.models.shared import counted_calls, generated, understand

FAMILY = "openuni"


@pytest.mark.parametrize("anchored", [False, True])
def test_decode_is_differentiable_to_states_and_perturbation(model, picture, anchored):
    output = generated(model, picture)
    anchor = output.target if anchored else None
    hidden = output.hidden.clone().requires_grad_()
    delta = torch.full_like(hidden, 0.1).requires_grad_()
    decoded = model.decode(hidden, delta, anchor)
    decoded.pixels.square().mean().backward()
    assert hidden.grad.abs().max() > 0 and torch.equal(hidden.grad, delta.grad)
    assert ((decoded.changed > 0) & (decoded.changed <= 1)).all()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    with torch.no_grad():
        again, larger = model.decode(hidden, delta, anchor), model.decode(hidden, 5 * delta, anchor)
    assert torch.equal(again.pixels, decoded.pixels)
    assert (larger.changed >= decoded.changed).all()
    (unperturbed,) = torch.autograd.grad(model.decode(hidden, None, anchor).pixels.square().mean(), [hidden])
    assert unperturbed.abs().max() > 0


def test_as_source_is_what_the_processor_shows(model, picture):
    image = picture(0)  # 16 x 16, the size of a source
    inputs = understand(model, UnderstandRow([image], [("what ?", "ball")]))
    torch.testing.assert_close(model.as_source(image[None].float() / 127.5 - 1), inputs.images[0])
    statistics = zip(image[:, 3, 4].tolist(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    expected = [(value / 255 - mean) / std for value, mean, std in statistics]
    assert inputs.images[0, 0, :, 3, 4].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_calls_the_transformer_once_per_step_of_the_solver(model, picture, guidance):
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    stepped = counted_calls(model.transformer)
    model.train().sample(inputs, guidance=guidance, temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert len(stepped) == model.config.flow.sample_steps == 3 and model.transformer.training


def test_the_condition_and_what_perturbs_it_change_a_sample(model):
    def drawn(prompt, perturb=None):
        generator = torch.Generator().manual_seed(0)
        prompts = model.processor.generate_prompts([prompt])
        return model.sample(prompts, guidance=2.0, temperature=1.0, generator=generator, perturb=perturb)

    shapes = []
    cube = drawn("a cube")
    assert not torch.equal(cube, drawn("a ball"))
    assert not torch.equal(cube, drawn("a cube", lambda hidden: shapes.append(hidden.shape) or 0.5 * hidden))
    assert shapes == [(1, 6, 64)]


def test_guidance_of_one_has_no_part_of_the_unconditional_velocity(model):
    inputs = model.processor.generate_prompts(["a cube"])
    start = torch.randn(1, *model.config.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition = model.condition(model._sample_states(inputs, guided=True))
        plain = model.sample_latents(start, condition[:1], 1.0)
        near = model.sample_latents(start, condition, 1.0 + 1e-6)
        far = model.sample_latents(start, condition, 4.0)
    torch.testing.assert_close(near, plain, rtol=1e-3, atol=1e-3)
    assert (far - plain).abs().max() > 1e-2
