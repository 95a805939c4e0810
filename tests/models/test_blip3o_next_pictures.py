"""Pictures of BLIP3o-NEXT: codes of its vision tokenizer, choices among the likeliest, states that are drawn, Euler's steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import SiglipVisionModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from megaunigame.models.base import evaluating
from megaunigame.models.blip3o_next.choosing import LikeliestPicker, likeliest
from megaunigame.models.blip3o_next.configuration import Choice
from megaunigame.models.diffusion import flow
from megaunigame.step.rows import GenerateRow
from tests.models.shared import counted_calls, generate, generated

FAMILY = "blip3o_next"


def test_codes_are_the_nearest_in_angle_to_the_states_before_the_last_layer(model, picture):
    tokenizer, config = model.vision_tokenizer, model.config.vq_config
    theirs = SiglipVisionModel(config.tower()).eval()
    inside = {"embeddings." + n: v for n, v in tokenizer.encoder["embeddings"].state_dict().items()}
    inside |= {"encoder." + n: v for n, v in tokenizer.encoder["encoder"].state_dict().items()}
    prefix = next(iter(theirs.state_dict())).partition("embeddings.")[0]
    _, unexpected = theirs.load_state_dict({prefix + n: v for n, v in inside.items()}, strict=False)
    assert not unexpected
    pixels = generate(model, GenerateRow("a", picture(0)), GenerateRow("a", picture(1))).targets
    shown = model.as_source(pixels)
    with torch.no_grad():
        states = theirs(pixel_values=shown, output_hidden_states=True).hidden_states[-2]
        table = tokenizer.bottleneck["regularizer"]
        rows = F.normalize(table["embedding_proj"](table["embedding"].weight), dim=-1)
        cells = F.normalize(tokenizer.bottleneck["in_linear"](tokenizer.encode_task_layer(states)), dim=-1)
        expected = (cells @ rows.T).argmax(-1)
    assert torch.equal(model.codes_of(pixels), expected) and len(expected.unique()) > 3
    assert shown.shape == (2, 3, 12, 12) and shown.abs().max() <= 1


def test_choices_are_among_those_of_the_release():
    """Order of transformers' generation: temperature, then the likeliest by number, then by mass."""
    logits = 3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    choice = Choice(top_k=12, top_p=0.8)
    expected = logits
    for warp in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(12), TopPLogitsWarper(0.8)):
        expected = warp(None, expected)
    ours = likeliest(logits / 0.7, choice)
    assert torch.equal(ours.isfinite(), expected.isfinite()) and 1 < ours.isfinite().sum(1).float().mean() < 12
    pick = LikeliestPicker(0.7, torch.Generator().manual_seed(0), choice)
    drawn = torch.stack([pick(logits) for _ in range(50)])
    assert ours.gather(1, drawn.T).isfinite().all() and len(drawn.unique(dim=0)) > 10
    assert torch.equal(LikeliestPicker(0.0, torch.Generator(), choice)(logits), logits.argmax(-1))
    assert torch.equal(likeliest(logits, Choice(top_k=1000, top_p=1.0)), logits)


@pytest.mark.parametrize(
    ("shares", "choice"),
    [([0.5, 0.3, 0.2], Choice(top_k=3, top_p=0.8)), ([0.5, 0.25, 0.25], Choice(top_k=2, top_p=0.9))],
    ids=["by mass", "by number"],
)
def test_a_code_that_rounding_could_leave_out_makes_a_choice_unsure(shares, choice):
    """The random number is near no sum of the codes that are there, but a third code would move all sums."""
    logits, error = torch.tensor([shares]).log(), torch.tensor([1e-5])
    pick = LikeliestPicker(1.0, torch.Generator().manual_seed(0), choice)
    chosen = pick(logits)
    pick._numbers = torch.tensor([[0.55]])
    chosen = pick.again(logits, 0)
    apart = logits + torch.tensor([[0.1, 0.0, -0.1]])
    assert pick.unsure(logits, chosen, error).item()
    assert not pick.unsure(apart, pick.again(apart, 0), error).item()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_are_those_of_the_official_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 5, 5).tolist())
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    times = []

    def velocity(noisy, at):
        times.append(at[0].item())
        return noisy.sin() * at.view(-1, 1, 1, 1) / 500

    ours, theirs = flow.euler(velocity, start, shift, 5), start
    for time in scheduler.timesteps:
        theirs = scheduler.step(velocity(theirs, time.expand(2)), time, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert times[:5] == pytest.approx(times[5:], rel=1e-5) and len(times) == 10


def test_drawn_states_are_those_of_the_generate_pass_on_the_drawn_codes(model, picture):
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    with torch.no_grad(), evaluating(model):
        codes, states = model.sample_states(inputs, temperature=1.0, generator=torch.Generator().manual_seed(0))
        latents = torch.zeros(2, *model.config.latent_shape)
        passed = model.match(inputs, codes, latents, torch.tensor([0.5, 0.5]), torch.zeros_like(latents))
    torch.testing.assert_close(states, passed.hidden, rtol=1e-4, atol=1e-4)
    assert codes.shape == (2, 9) and codes.max() < 48


def test_greedy_codes_are_predicted_again(model):
    inputs = model.processor.generate_prompts(["a cube"])
    with torch.no_grad(), evaluating(model):
        codes, states = model.sample_states(inputs, temperature=0.0, generator=torch.Generator())
        assert torch.equal(model.code_logits(states[:, :-1]).argmax(-1), codes)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_transformer_is_called_once_per_step(model, guidance):
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"])
    stepped = counted_calls(model.dit)
    model.train().sample(inputs, guidance=guidance, temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert len(stepped) == model.config.flow.sample_steps == 3


def test_guidance_leads_away_from_no_condition(model):
    inputs = model.processor.generate_prompts(["a cube"])
    start = torch.randn(1, *model.config.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), evaluating(model):
        _, hidden = model.sample_states(inputs, temperature=0.0, generator=torch.Generator())
        condition = model.condition(torch.cat([hidden, torch.zeros_like(hidden)]))
        plain, without = (model.sample_latents(start, part, 1.0) for part in condition.split(1))
        near, far = (model.sample_latents(start, condition, guidance) for guidance in (1.0 + 1e-6, 4.0))
        none = model.sample_latents(start, condition, 1e-6)
    torch.testing.assert_close(near, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(none, without, rtol=1e-3, atol=1e-3)
    assert (far - plain).abs().max() > 1e-2


def test_what_perturbs_the_states_changes_a_sample(model):
    def drawn(perturb=None):
        prompts = model.processor.generate_prompts(["a cube"])
        generator = torch.Generator().manual_seed(0)
        return model.sample(prompts, guidance=2.0, temperature=1.0, generator=generator, perturb=perturb)

    shapes = []
    assert not torch.equal(drawn(), drawn(lambda hidden: shapes.append(hidden.shape) or 0.5 * hidden))
    assert shapes == [(1, 10, 64)]


@pytest.mark.parametrize("anchored", [False, True])
def test_decode_is_differentiable_to_states_and_perturbation(model, picture, anchored):
    output = generated(model, picture)
    anchor = output.target if anchored else None
    hidden = output.hidden.clone().requires_grad_()
    delta = torch.full_like(hidden, 0.1).requires_grad_()
    decoded = model.decode(hidden, delta, anchor)
    decoded.pixels.square().mean().backward()
    assert hidden.grad.abs().amax((0, 2)).min() > 0, "a state is not read"
    assert torch.equal(hidden.grad, delta.grad) and ((decoded.changed > 0) & (decoded.changed <= 1)).all()
    assert all(p.grad is None for p in model.frozen.module.parameters())
