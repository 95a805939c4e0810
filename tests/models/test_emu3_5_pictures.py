"""The IBQ vision tokenizer: codes by dot product, the gradient of the soft choice, pictures of any size, pieces."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megaunigame.models.emu3_5.configuration import VisionConfig
from megaunigame.models.emu3_5.vq import VisionTokenizer
from megaunigame.models.vqgan import code_tokenizer

FAMILY = "emu3_5"
ATTENDING = VisionConfig(32, 4, 8, 32, (1, 2, 1), 2, (8, 4), 16, 3, 5)


def test_a_code_has_the_largest_dot_product(model, picture, monkeypatch):
    """Not the smallest distance; and the same with scores of a few cells at a time."""
    tokenizer = model.vision_tokenizer
    pixels = torch.stack([picture(seed).float() / 127.5 - 1 for seed in (0, 1)])
    latents = tokenizer.latents(pixels).permute(0, 2, 3, 1)
    products = latents @ tokenizer.quantize["embedding"].weight.T
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 4, 4) and torch.equal(codes, products.argmax(-1))
    near = torch.cdist(latents.flatten(0, 2), tokenizer.codebook()).argmin(1).view(codes.shape)
    assert (near != codes).float().mean() > 0.2
    monkeypatch.setattr(code_tokenizer, "SCORES_AT_A_TIME", 3 * 48)
    assert torch.equal(tokenizer.encode(pixels), codes)


def test_neighbors_are_the_largest_dot_products_with_their_softmax(model, picture):
    tokenizer = model.vision_tokenizer
    pixels = picture(0)[None].float() / 127.5 - 1
    codes, shares = tokenizer.neighbors(pixels)
    products = tokenizer.latents(pixels).permute(0, 2, 3, 1) @ tokenizer.codebook().T
    values, places = products.topk(8, dim=-1)
    assert torch.equal(codes, places)
    torch.testing.assert_close(shares, values.softmax(-1), rtol=1e-5, atol=1e-6)


def test_the_gradient_into_pictures_is_that_of_a_soft_choice(model):
    """The gradient of the mean embedding of the likeliest codes, weighed by a softmax over their dot products."""
    torch.manual_seed(0)
    tokenizer = model.vision_tokenizer.double()
    table = model.language_model.embed_tokens.weight.detach().double()
    pixels = torch.rand(1, 3, 12, 12, dtype=torch.double) * 2 - 1
    wish = torch.randn(9, 64, dtype=torch.double)
    with torch.no_grad():
        base, _ = tokenizer.neighbors(pixels)
    rows = tokenizer.codebook().double()[base]

    def mean(moved):
        latents = tokenizer.latents(moved).double().permute(0, 2, 3, 1).unsqueeze(-2)
        shares = (latents * rows).sum(-1).softmax(-1).flatten(1, 2)[0]
        return ((table[base.flatten(1, 2)[0] + model.grid.first] * shares.unsqueeze(-1)).sum(1) * wish).sum()

    (expected,) = torch.autograd.grad(mean(pixels.requires_grad_()), [pixels])
    (found,) = torch.autograd.grad((model.visual_tokens(pixels.unsqueeze(1))[0, 0] * wish).sum(), [pixels])
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_attention_follows_levels_whatever_the_size_of_a_picture():
    """attn_resolutions are pixels of a picture of the nominal resolution."""
    tokenizer = VisionTokenizer(ATTENDING)
    assert [len(level.attn) for level in tokenizer.encoder.down] == [0, 2, 2]
    assert [len(level.attn) for level in tokenizer.decoder.up] == [0, 3, 3]
    assert [len(level.block) for level in tokenizer.decoder.up] == [3, 3, 3] and tokenizer.cell == 4
    assert tokenizer.latents(torch.zeros(1, 3, 32, 24)).shape == (1, 4, 8, 6)
    assert tokenizer.decode_codes(torch.zeros(1, 8, 6, dtype=torch.long)).shape == (1, 5, 32, 24)


def test_decoding_is_of_rows_of_the_codebook(model):
    tokenizer, codes = model.vision_tokenizer, torch.arange(16).view(1, 4, 4)
    rows = F.embedding(codes, tokenizer.codebook()).permute(0, 3, 1, 2)
    expected = tokenizer.decoder(tokenizer.post_quant_conv(rows))
    torch.testing.assert_close(tokenizer.decode_codes(codes), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape == (1, 3, 16, 16)
