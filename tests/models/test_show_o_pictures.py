"""The vision tokenizer of Show-o: bits of codes and their neighbors."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.show_o.vq import Bits, Magvit
from megaunigame.models.vqgan.layers import Sizes

FAMILY = "show_o"


def test_a_code_is_the_signs_of_its_bits_the_first_most_significant():
    bits = Bits(3)
    assert bits.power_vals.tolist() == [4, 2, 1]
    assert bits.embedding.tolist()[:3] == [[-1, -1, -1], [-1, -1, 1], [-1, 1, -1]] and bits.embedding[7].tolist() == [1, 1, 1]
    assert set(bits.state_dict()) == {"power_vals", "embedding"}


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    sizes = Sizes(32, (1, 1), (1, 1), frozenset(), latent=5)
    return Magvit(sizes, sizes).eval()


def test_zero_is_not_set_and_neighbors_differ_in_the_bit_nearest_to_zero(tokenizer):
    latents = torch.tensor([0.0, -0.3, 0.2, -2.0, 0.1]).view(1, 5, 1, 1)
    assert tokenizer.nearest(latents).flatten().tolist() == [0b00101]
    # In the order of the distances to 0: channels 0, 4, 2, 1, 3.
    expected = [0b00101, 0b10101, 0b00100, 0b00001, 0b01101, 0b00111]
    assert tokenizer.nearest(latents, 99).flatten().tolist() == expected
    assert tokenizer.nearest(latents, 3).flatten().tolist() == expected[:3]


def test_codes_are_the_nearest_rows_of_the_codebook(tokenizer):
    latents = torch.randn(2, 5, 3, 4)
    plain = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 5), tokenizer.codebook())
    assert tokenizer.nearest(latents).flatten().tolist() == plain.argmin(1).tolist()
    second = tokenizer.nearest(latents, 2)[..., 1].flatten()
    assert second.tolist() == plain.topk(2, largest=False).indices[:, 1].tolist()


def test_the_nearer_neighbor_has_the_larger_share_and_the_gradient_reaches_pixels(tokenizer):
    pixels = torch.randn(1, 3, 4, 6).clamp(-1, 1).requires_grad_()
    codes, shares = tokenizer.neighbors(pixels)
    assert codes.shape == shares.shape == (1, 2, 3, 6) and torch.equal(codes[..., 0], tokenizer.encode(pixels))
    assert (shares.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 2, 3))
    (gradient,) = torch.autograd.grad(shares[..., 0].sum(), pixels)
    assert gradient.abs().max() > 0
