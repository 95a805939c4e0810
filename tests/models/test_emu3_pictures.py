"""Emu3: line ends among codes, and the gradient from codes into pictures."""

from __future__ import annotations

import pytest
import torch
from transformers import Emu3VQVAE

from megaunigame.step.rows import UnderstandRow
from tests.models.shared import greedy, understand

FAMILY = "emu3"


def test_rows_of_codes(model):
    grid = model.grid
    codes = torch.arange(16).view(1, 16)
    tokens = grid.tokens(codes)
    names = model.processor.tokenizer.convert_ids_to_tokens(tokens[0].tolist())
    assert names[:6] == [*(f"<|visual token 00000{i}|>" for i in range(4)), "<|extra_200|>", "<|visual token 000004|>"]
    assert names[-1] == "<|extra_200|>" and len(names) == grid.length == 20
    assert torch.equal(tokens[0][grid.places()] - grid.first, codes[0])
    assert grid.arranged(codes)[0, 1].tolist() == [4, 5, 6, 7] and grid.size == "4*4"


def test_codes_and_pictures_are_those_of_transformers(model, picture):
    """Which has no gradient into pictures, and decodes all frames in place of the first."""
    ours = model.vision_tokenizer
    theirs = Emu3VQVAE(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.stack([picture(seed)[:, :12, :16] for seed in range(2)]).float() / 127.5 - 1
    with torch.no_grad():
        codes = torch.stack(theirs.encode(pixels, torch.tensor([[12, 16]] * 2)).image_tokens)
        frames = theirs.decode(codes)
    assert len(codes.unique()) > 1 and torch.equal(ours.encode(pixels), codes)
    torch.testing.assert_close(ours.decode_codes(codes), frames[:, 0] if frames.dim() == 5 else frames, rtol=1e-4, atol=1e-5)


def test_towards_the_embedding_the_gradient_is_that_of_plain_tokens(model, picture):
    images = understand(model, UnderstandRow([picture(0)], [("what ?", "a ball")])).images
    table = model.language_model.embed_tokens.weight
    weights = torch.randn(1, 1, 9, 64)
    (plain,) = torch.autograd.grad((model.visual_tokens(images) * weights).sum(), [table])
    (soft,) = torch.autograd.grad((model.visual_tokens(images.requires_grad_()) * weights).sum(), [table])
    assert torch.equal(soft, plain)


def test_the_gradient_into_pictures_is_that_of_a_soft_choice(model, picture):
    """The gradient of the mean embedding of the nearest codes, weighed by a softmax over their distances."""
    torch.manual_seed(0)
    tokenizer = model.vision_tokenizer.double()
    table = model.language_model.embed_tokens.weight.detach().double()
    pixels = torch.rand(1, 3, 12, 12, dtype=torch.double) * 2 - 1
    wish = torch.randn(9, 64, dtype=torch.double)
    with torch.no_grad():
        base, _ = tokenizer.neighbors(pixels)
        latents = tokenizer.latents(pixels).double().permute(0, 2, 3, 1).unsqueeze(-2)
        rows = tokenizer.codebook().double()[base]
        unit = (latents - rows).square().sum(-1).mean(-1, keepdim=True)

    def mean(moved):
        latents = tokenizer.latents(moved).double().permute(0, 2, 3, 1).unsqueeze(-2)
        shares = (-(latents - rows).square().sum(-1) / unit).softmax(-1).flatten(1, 2)[0]
        return ((table[base.flatten(1, 2)[0] + model.grid.first] * shares.unsqueeze(-1)).sum(1) * wish).sum()

    (expected,) = torch.autograd.grad(mean(pixels.requires_grad_()), [pixels])
    (found,) = torch.autograd.grad((model.visual_tokens(pixels.unsqueeze(1))[0, 0] * wish).sum(), [pixels])
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_what_perturbs_codes_leaves_line_ends_alone(model):
    inputs, shapes = model.processor.generate_prompts(["a cube"]), []
    plain = model.sample_codes(inputs, guidance=1.0, pick=greedy)
    moved = model.sample_codes(inputs, guidance=1.0, pick=greedy, perturb=lambda e: shapes.append(e.shape) or 3 * e.flip(-1))
    assert shapes == [(1, 1, 64)] * 15 and plain[0, 0] == moved[0, 0] and not torch.equal(plain, moved)


def test_a_generated_picture_is_resized_to_a_source(model, picture):
    pixels = picture(0)[None].float() / 127.5 - 1
    assert model.as_source(pixels).shape == (1, 3, 12, 12)
    small = pixels[..., :12, :12]
    assert torch.equal(model.as_source(small), small)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 2), slice(1, 4), slice(0, 4)])
def test_rows_without_a_gradient_are_encoded_as_they_always_are(model, picture, rows, monkeypatch):
    """Next to an adversary's pictures, clean ones keep no graph of the tokenizer."""
    images = torch.stack([model.processor.normalize_source(picture(seed)) for seed in range(4)]).unsqueeze(1)
    asked = []
    neighbors = model.vision_tokenizer.neighbors
    monkeypatch.setattr(model.vision_tokenizer, "neighbors", lambda pixels: asked.append(len(pixels)) or neighbors(pixels))

    def tokens_and_gradient(gradient_rows):
        attacked = images[rows].clone().requires_grad_()
        joined = torch.cat([images[: rows.start], attacked, images[rows.stop :]])
        tokens = model.visual_tokens(joined, gradient_rows)
        (tokens * torch.linspace(-1, 1, tokens.numel()).view_as(tokens)).sum().backward()
        return tokens.detach(), attacked.grad

    theirs, expected = tokens_and_gradient(None)
    ours, got = tokens_and_gradient(rows)
    assert asked == [4, rows.stop - rows.start]
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert got.abs().max() > 1e-6
