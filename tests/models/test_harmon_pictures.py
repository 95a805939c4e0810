"""Pictures of Harmon: rounds of sampling, guidance, one-step prediction, the autoencoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.models.harmon import diffusion, masking, sampling
from megaunigame.models.harmon.model import in_grid, in_lines
from tests.models.shared import generated

FAMILY = "harmon"


def drawing(model, **changes):
    model.config.drawing = dataclasses.replace(model.config.drawing, **changes)


def test_rounds_reveal_every_token_once(model):
    left, counts = 16, []
    for number in range(5):
        after = masking.still_masked(number, 5, left, 16)
        counts.append(left - after)
        left = after
    assert counts == [1, 3, 3, 5, 4] and left == 0  # what is left falls as a quarter of a cosine: 15, 12, 9, 4
    assert masking.still_masked(0, 9, 1, 1) == 1, "a round may reveal nothing; it is made all the same"


def sampled(model, guidance, sample_noise=None, seed=0):
    inputs = model.processor.generate_prompts(["a small cube"])
    with torch.no_grad():
        prompts = model._prompts(inputs, guided=guidance != 1)
        reader = sampling.PictureReader(model.language_model, *prompts, flash=False)
        noise = sampling.RowNoise(torch.Generator().manual_seed(seed), 1, 4, torch.device("cpu"))
        return sampling.draw(model, reader, noise.orders(16), noise, guidance, 1.0)


def test_one_round_of_known_tokens_puts_them_where_they_belong(model, monkeypatch):
    """Each token of a round has the condition of its place."""
    drawing(model, rounds=3)
    conditions = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(sampling, "conditions", lambda *given: conditions)
    monkeypatch.setattr(sampling.diffusion, "denoise", lambda predict, *given: predict.condition[..., :4])
    noise = sampling.RowNoise(torch.Generator().manual_seed(0), 1, 4, torch.device("cpu"))
    assert torch.equal(sampling.draw(model, None, noise.orders(16), noise, 1.0, 1.0), conditions[..., :4])


def test_a_cache_changes_nothing(model):
    """Each round reads the picture after the request; the same as request and picture read together."""
    inputs = model.processor.generate_prompts(["a small cube", "a ball"])
    read = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeds = model.embed(inputs)
        reader = sampling.PictureReader(model.language_model, embeds, inputs.attention, flash=False)
        twice = [reader(read), reader(read)]
        whole = model.picture_states(embeds, inputs.attention, read)
    torch.testing.assert_close(twice[0], twice[1])
    torch.testing.assert_close(twice[0], whole, rtol=1e-4, atol=1e-5)


def test_guidance_is_on_the_noise(model):
    condition = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    x, levels = torch.randn(1, 5, 4), torch.full((1, 5), 300)
    with torch.no_grad():
        parts = [sampling.Guided(model, half[None], 1, 1.0)(x, levels) for half in condition]
        noise, v = sampling.Guided(model, condition, 2, 3.0)(x, levels)
    torch.testing.assert_close(noise, parts[1][0] + 3 * (parts[0][0] - parts[1][0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v, parts[0][1], rtol=1e-4, atol=1e-4)


def test_linear_guidance_begins_small(model):
    pictures = []
    for schedule in ("constant", "linear"):
        drawing(model, guidance_schedule=schedule)
        pictures.append(sampled(model, 3.0))
    assert not torch.allclose(*pictures)
    drawing(model, guidance_schedule="linear", rounds=1)
    first = sampled(model, 3.0)
    drawing(model, guidance_schedule="constant")
    scale = 1 + 2 * 15 / 16  # the official schedule counts one token as left in the last round
    torch.testing.assert_close(first, sampled(model, scale), rtol=1e-3, atol=1e-3)


def knowing(clean):
    """A prediction that knows the tokens: the noise of x_t, and the middle of the log variances."""

    def predict(x, levels):
        table = diffusion.tables(diffusion.LEVELS, x.device)
        noise = (x - table.root[levels].unsqueeze(-1) * clean) / table.noise_root[levels].unsqueeze(-1)
        return noise, torch.zeros_like(noise)

    return predict


def test_a_perfect_prediction_is_denoised_to_the_picture():
    """Predicting the noise of known tokens gives these tokens, in any number of steps."""
    clean = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    noise = sampling.RowNoise(torch.Generator().manual_seed(1), 1, 4, torch.device("cpu"))
    for steps in (2, 10, 100):
        drawn = diffusion.denoise(knowing(clean), noise.start(6), noise.steps(6), steps, 1.0)
        torch.testing.assert_close(drawn, clean, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("steps", [2, 10])
def test_the_last_step_adds_no_noise(steps):
    """However hot the steps before are: a picture that ends with noise is grainy."""
    clean = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    noise = sampling.RowNoise(torch.Generator().manual_seed(1), 1, 4, torch.device("cpu"))
    drawn = diffusion.denoise(knowing(clean), noise.start(6), noise.steps(6), steps, 100.0)
    torch.testing.assert_close(drawn, clean, rtol=1e-2, atol=2e-2)


def test_one_step_predicts_what_was_noised():
    clean, noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for level in (10, 500, 900):
        noisy = diffusion.noisy(clean, noise, torch.full(clean.shape[:-1], level))
        torch.testing.assert_close(diffusion.clean_from(noisy, noise, level), clean, rtol=1e-3, atol=1e-3)


def test_levels_of_sampling_include_both_ends():
    assert diffusion.chosen_levels(1000) == list(range(1000)) and diffusion.chosen_levels(1) == [0]
    for steps in (2, 5, 100):
        levels = diffusion.chosen_levels(steps)
        assert len(levels) == steps and levels[0] == 0 and levels[-1] == 999


def test_decoding_drops_nothing_out(model, picture):
    """Two networks are subtracted: a dropped unit would look like a perturbation."""
    output = generated(model, picture)
    for layer in model.mar.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.5
    model.train()
    with torch.no_grad():
        still = model.decode(output.hidden, torch.zeros_like(output.hidden), output.target)
    assert (still.changed == 0).all() and model.mar.training


def test_pictures_need_not_be_squares(model):
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode_target(pixels)
    assert latents.shape == (2, 4, 4, 6) and model.decode_latents(latents).shape == pixels.shape
    assert torch.equal(in_grid(in_lines(latents), (4, 6)), latents)


def test_latents_have_the_scale_of_the_folder(model):
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, log_variance = model.frozen.module.posterior(pixels)
    torch.testing.assert_close(model.encode_target(pixels), 0.7 * mean)
    assert log_variance.shape == mean.shape and log_variance.abs().max() <= 30
    torch.testing.assert_close(model.decode_latents(0.7 * mean), model.frozen.module.decode(mean))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_perturbation_is_added_to_the_buffers_in_every_round(model, guidance):
    inputs, given = model.processor.generate_prompts(["a cube", "a ball"]), []

    def sample(perturb):
        generator = torch.Generator().manual_seed(0)
        return model.sample(inputs, guidance=guidance, temperature=1.0, generator=generator, perturb=perturb)

    def nothing(hidden):
        given.append(hidden.shape)
        return torch.zeros_like(hidden)

    plain = sample(None)
    assert torch.equal(sample(nothing), plain) and given == [(2, 3, 64)] * 3
    assert not torch.allclose(sample(lambda hidden: 5 * torch.ones_like(hidden)), plain)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_temperature_zero_adds_no_noise(model, guidance):
    inputs = model.processor.generate_prompts(["a cube"])
    options = {"guidance": guidance, "generator": torch.Generator().manual_seed(0)}
    cold = model.sample(inputs, temperature=0.0, **options)
    options["generator"].manual_seed(0)
    assert not torch.equal(cold, model.sample(inputs, temperature=1.0, **options))
