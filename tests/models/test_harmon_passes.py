"""The two passes of Harmon: masks, buffers, grids, the diffusion loss, gradients into the shared encoder."""

from __future__ import annotations

import math

import pytest
import torch

from megaunigame.models.harmon import diffusion, masking
from megaunigame.models.harmon.mar import taken
from megaunigame.models.harmon.model import in_lines
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand

FAMILY = "harmon"


def draw_of(latents, masked, seed=0):
    """A draw with fixed numbers for (B, C, h, w)."""
    tokens, generator = in_lines(latents), torch.Generator().manual_seed(seed)
    orders = torch.rand(tokens.shape[:2], generator=generator).argsort(1)
    shape = 2, len(tokens), masked
    levels = torch.randint(1, 1000, shape, generator=generator)
    return masking.Draw(*masking.split(orders, masked), levels, torch.randn(*shape, tokens.shape[2], generator=generator))


def test_masked_tokens_of_the_target_are_not_read(model, picture):
    """What is at a masked place is in the loss only; what is at a visible place changes what is predicted elsewhere."""
    inputs = generate(model, GenerateRow("a cube", picture(0)))
    latents = model.encode_target(inputs.targets)
    drawn, conditions = draw_of(latents, masked=12), []
    hook = model.mar.register_forward_hook(
        lambda m, a, k, out: conditions.append(out) if k.get("decode") else None, with_kwargs=True
    )
    with torch.no_grad():
        for places in (None, drawn.masked, drawn.seen):
            changed = latents.flatten(2).clone()
            if places is not None:
                changed[0, :, places[0]] += 3.0
            model.match(inputs, changed.view_as(latents), drawn)
    hook.remove()
    plain, other_masked, other_seen = conditions
    assert torch.equal(plain, other_masked) and (plain - other_seen).abs().amax(-1).min() > 1e-4


def test_everything_can_be_masked(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1), picture(2)))
    latents = model.encode_target(inputs.targets)
    output = model.match(inputs, latents, draw_of(latents, masked=16))
    output.loss_sum.sum().backward()
    assert torch.isfinite(output.loss_sum).all() and output.hidden.shape == (2, 3, 64)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_loss_is_squared_error_and_bits(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)))
    latents = model.encode_target(inputs.targets)
    drawn = draw_of(latents, masked=5)
    seen = []
    hook = model.mar.diffloss.register_forward_hook(lambda m, a, out: seen.append((a[0], *out)))
    with torch.no_grad():
        loss = model.match(inputs, latents, drawn).loss_sum.item()
    hook.remove()
    (noisy, noise, v), a = seen[0], diffusion.kept_shares().float()
    clean, total = taken(in_lines(latents), drawn.masked), 0.0
    for copy in range(2):
        for place in range(5):
            t = int(drawn.levels[copy, 0, place])
            x = a[t].sqrt() * clean[0, place] + (1 - a[t]).sqrt() * drawn.noise[copy, 0, place]
            torch.testing.assert_close(noisy[copy, 0, place], x)
            before, beta = a[t - 1], diffusion.betas()[t].float()
            variance = (beta * (1 - before) / (1 - a[t])).clamp_min(1e-20)
            log = (v[copy, 0, place] + 1) / 2 * beta.log() + (1 - v[copy, 0, place]) / 2 * variance.log()
            shift = beta * before.sqrt() / (1 - a[t]) * (1 / a[t] - 1).sqrt() * (drawn.noise - noise)[copy, 0, place]
            kl = 0.5 * (log - variance.log() - 1 + (variance.log() - log).exp() + shift.square() / log.exp())
            squared = (drawn.noise - noise)[copy, 0, place].square().mean()
            total += (squared + kl.mean() / math.log(2)).item() / 2
    assert loss == pytest.approx(total / 5 * 16, rel=2e-3)


def test_the_bound_moves_the_variance_alone(model):
    generator = torch.Generator().manual_seed(0)
    clean, noise, predicted, v = torch.randn(4, 3, 4, generator=generator)
    predicted.requires_grad_(), v.requires_grad_()
    levels = torch.tensor([0, 500, 999])
    noisy = diffusion.noisy(clean, noise, levels)
    losses = diffusion.token_losses(clean, noisy, levels, noise, predicted, v)
    into = torch.autograd.grad(losses.bits.sum(), [predicted, v], allow_unused=True, retain_graph=True)
    assert into[0] is None and (into[1] != 0).any(-1).all()
    assert torch.autograd.grad(losses.squared.sum(), [predicted, v], allow_unused=True)[1] is None


def test_shares_of_masked_tokens_follow_their_distribution():
    counts = [masking.masked_count(0.7, (n + 0.5) / 1000, 1000) for n in range(1000)]
    assert counts == sorted(counts) and 700 <= counts[0] <= 702 and counts[-1] == 1000
    # The mean of a normal distribution cut off at 1.2 deviations below its mean and at the mean.
    phi = math.exp(-0.5 * 1.2**2) / math.sqrt(2 * math.pi)
    mass = masking.SHARES.cdf(1) - masking.SHARES.cdf(0.7)
    mean = 1 + 0.25 * (phi - 1 / math.sqrt(2 * math.pi)) / mass
    assert sum(counts) / 1e6 == pytest.approx(mean, abs=1e-3)
    assert masking.masked_count(0.01, 0.0, 4) == 1 and masking.masked_count(0.7, 0.999, 4) == 4


def test_training_draws_and_evaluation_does_not(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1)))

    def loss(seed):
        torch.manual_seed(seed)
        return model(inputs).loss_sum.detach()

    assert torch.equal(loss(0), loss(1))
    model.train()
    assert torch.equal(loss(0), loss(0)) and not torch.equal(loss(0), loss(1))


def test_a_picture_is_redrawn_from_its_request_alone(model, picture):
    """In training without a gradient; UniGame's states of a redrawn picture do not depend on what is drawn."""
    model.train()
    with torch.no_grad():
        states = [model(generate(model, GenerateRow("a cube", picture(seed), picture(2)))).hidden for seed in (0, 1)]
    assert torch.equal(*states)


def test_questions_and_sources_scale_the_gradient_into_the_encoder(model, picture):
    def gradients(inputs):
        model.zero_grad()
        model(inputs).loss_sum.sum().backward()
        return model.proj_in[2].bias.grad.clone(), model.language_model.norm.weight.grad.clone()

    asked = understand(model, UnderstandRow([picture(0)], [("what ?", "a ball")]))
    scaled = gradients(asked)
    model.config.drawing = model.config.drawing.__class__(**{**vars(model.config.drawing), "understanding_gradient": 1.0})
    whole = gradients(asked)
    torch.testing.assert_close(scaled[0], 0.1 * whole[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scaled[1], whole[1], rtol=1e-5, atol=1e-7)


def test_a_gradient_to_pixels_is_not_scaled(model, picture):
    """The adversary's way through a question: the factor is for weights."""
    pixels = []
    for factor in (0.1, 1.0):
        model.config.drawing = model.config.drawing.__class__(
            **{**vars(model.config.drawing), "understanding_gradient": factor}
        )
        asked = understand(model, UnderstandRow([picture(0)], [("what ?", "a ball")]))
        asked.images.requires_grad_()
        pixels.append(torch.autograd.grad(model(asked).loss_sum.sum(), [asked.images])[0])
    torch.testing.assert_close(*pixels)
    assert pixels[0].abs().max() > 0


def test_buffers_come_last_in_the_language_model(model, picture):
    read = []
    hook = model.proj_in.register_forward_hook(lambda m, a, out: read.append(out))
    with torch.no_grad():
        visual = model.visual_tokens(torch.zeros(1, 1, 3, 12, 12))
    hook.remove()
    assert visual.shape == (1, 1, 9 + 3, 64)
    assert torch.equal(visual[0, 0, -3:], read[0][0, :3]) and torch.equal(visual[0, 0, :9], read[0][0, 3:])


def test_other_grids_have_interpolated_positions_and_the_same_buffers(model):
    native = model.mar._positions(model.mar.encoder_pos_embed_learned, (4, 4), torch.float32)
    other = model.mar._positions(model.mar.encoder_pos_embed_learned, (2, 8), torch.float32)
    assert torch.equal(native[0], other[0]) and other[1].shape == (1, 16, 32)
    columns = native[1].view(4, 4, 32)
    # Half the lines: a line is the mean of two. Twice the columns: the first is the first.
    torch.testing.assert_close(other[1].view(2, 8, 32)[:, 0], columns[:, 0].view(2, 2, 32).mean(1))
    with torch.no_grad():
        wide = model.encode(torch.randn(1, 16, 4), torch.arange(16)[None], (2, 8))
    assert wide[0].shape == (1, 19, 32) and wide[1].shape == (1, 19, 64)


def test_one_matrix_reads_and_writes_words(model, picture):
    names = [name for name, _ in model.named_parameters() if "embed_tokens" in name or "lm_head" in name]
    assert names == ["llm.lm_head.weight"]
    ids = torch.tensor([[3, 5]])
    assert torch.equal(model.language_model.embed_tokens(ids), model.lm_head.weight[ids])
    model(understand(model, UnderstandRow([], [("what ?", "a ball")]))).loss_sum.sum().backward()
    assert (model.lm_head.weight.grad != 0).any(1).all()  # every word is scored


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_autoencoder_and_head(tiny, checkpointing):
    model = tiny.load(gradient_checkpointing=checkpointing)
    assert model.mar.gradient_checkpointing == model.mar.diffloss.net.gradient_checkpointing == checkpointing
