"""The image tokenizer of Chameleon next to transformers' encoder, its decoder, and the order of its codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import ChameleonVQVAE

FAMILY = "chameleon"
PREFIX = "model.vqmodel."


@pytest.fixture
def encoder(tiny):
    """transformers' half of the image tokenizer."""
    half = ChameleonVQVAE(tiny.config.vq_config)
    names = half.state_dict().keys()
    half.load_state_dict({name: tiny.state[PREFIX + name] for name in names})
    return half.eval()


@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_codes_are_those_of_transformers(model, encoder, size):
    pixels = torch.rand(3, 3, *size) * 2 - 1
    tokenizer = model.vision_tokenizer
    with torch.no_grad():
        theirs = encoder.quant_conv(encoder.encoder(pixels))
        codes = encoder.encode(pixels).image_tokens.view(3, size[0] // 4, size[1] // 4)
        torch.testing.assert_close(tokenizer.latents(pixels), theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(tokenizer.codes[tokenizer.encode(pixels)], codes) and len(codes.unique()) > 3


def test_the_decoder_upsamples_as_its_layers_say(model):
    """Layer by layer, with attention at the level of 8 x 8 in the encoder's count."""
    tokenizer = model.vision_tokenizer
    decoder = tokenizer.decoder
    places = torch.randint(0, 48, (2, 4, 4), generator=torch.Generator().manual_seed(0))

    def swish(x):
        return x * torch.sigmoid(x)

    def block(layer, x):
        h = layer.conv2(swish(layer.norm2(layer.conv1(swish(layer.norm1(x))))))
        return h + (layer.nin_shortcut(x) if hasattr(layer, "nin_shortcut") else x)

    def attend(layer, x):
        q, k, v = (getattr(layer, name)(layer.norm(x)).flatten(2) for name in "qkv")
        maps = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(-1)
        return x + layer.proj_out((v @ maps.transpose(1, 2)).view_as(x))

    with torch.no_grad():
        rows = tokenizer.quantize["embedding"].weight[torch.tensor(model.processor.format.codes)[places]]
        x = decoder.conv_in(tokenizer.post_quant_conv(rows.permute(0, 3, 1, 2)))
        x = block(decoder.mid.block_2, attend(decoder.mid.attn_1, block(decoder.mid.block_1, x)))
        for number in (2, 1, 0):
            level = decoder.up[number]
            assert len(level.block) == 2 and len(level.attn) == (2 if number == 1 else 0)
            for index, layer in enumerate(level.block):
                x = block(layer, x)
                x = attend(level.attn[index], x) if level.attn else x
            if number:
                x = level.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        expected = decoder.conv_out(swish(decoder.norm_out(x)))
        torch.testing.assert_close(tokenizer.decode_codes(places), expected, rtol=1e-4, atol=1e-5)


def test_a_sequence_of_codes_has_no_line_ends(model):
    codes = torch.arange(16).view(1, 16)
    assert torch.equal(model.grid.tokens(codes), codes + model.grid.first)
    assert model.lines == (0, None) and model.calls_per_sample == model.codes_per_image == 16


def test_the_codebook_is_in_the_order_of_the_tokens(model):
    stored = model.vision_tokenizer.quantize["embedding"].weight
    assert torch.equal(model.codebook(), stored[model.processor.format.codes]) and not torch.equal(model.codebook(), stored)
