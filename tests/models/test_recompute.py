"""Frozen tokenizers that recompute: the numbers of the plain layers, in chunks of pictures, and the bytes they hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Emu3Config, JanusConfig
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.models import recompute
from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.diffusion import autoencoding
from megaunigame.models.diffusion.modules import diffusers_class
from megaunigame.models.emu3 import Emu3
from megaunigame.models.emu3.vq import VisionTokenizer
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.models.vqgan import sliced_norm
from tests.models import plain_vqgan

GB = 1e9
PARTS = ["emu3_encoder", "emu3_decoder", "janus_decoder", "openuni_decoder", "vqgan_encoder", "vqgan_decoder"]
CHUNKS = [1, 2 * 16 * 24, 1 << 19]
"""Pixels at a time: of three pictures of 16 x 24 one, two, all."""


def seeded(module):
    """Random weights, biases and statistics; frozen, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.1 * noise.abs() if name.endswith("running_var") else noise * tensor[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


def emu3_tokenizer():
    config = Emu3VQVAEConfig(
        base_channels=32, channel_multiplier=(1, 2, 4), attn_resolutions=(2,), num_res_blocks=2, hidden_size=128,
        embed_dim=4, latent_channels=4, codebook_size=40, temporal_downsample_factor=2, num_attention_heads=2,
    )  # fmt: skip
    return seeded(VisionTokenizer(config))


def swish(x):
    return x * torch.sigmoid(x)


def emu3_latents(tokenizer, pixels):
    """By the blocks of transformers, nothing recomputed."""
    layers = tokenizer.encoder
    frame = layers.middle_block(layers.down_block(layers.conv_in(pixels)))
    frames = layers.conv_out(swish(layers.norm_out(frame))).unsqueeze(2).repeat(1, 1, 2, 1, 1)
    for layer in layers.time_conv:
        frames = swish(layer(frames))
    for layer in layers.time_res_stack:
        frames = layer(frames)
    return tokenizer.quant_conv(frames)[:, :, 0]


def emu3_pixels(tokenizer, quant):
    layers, codes = tokenizer.decoder, quant.unsqueeze(2)
    frames = torch.cat([tokenizer.post_quant_conv(codes), codes])
    for layer in layers.time_res_stack:
        frames = layer(frames)
    for layer in layers.time_conv:
        frames = swish(layer(frames))
    picture, codes = frames[:, :, 0].chunk(2)
    picture = layers.up_block(layers.middle_block(layers.conv_in(picture), codes), codes)
    return layers.conv_out(swish(layers.norm_out(picture, codes)))


def janus_tokenizer():
    config = JanusVQVAEConfig(
        base_channels=32, channel_multiplier=[1, 2, 1], num_res_blocks=1, embed_dim=4, latent_channels=16, num_embeddings=40
    )
    return seeded(ImageTokenizer(config))


def openuni_autoencoder():
    widths, layers = (8, 16, 32), (1, 2, 1)
    return seeded(
        diffusers_class("AutoencoderDC")(
            latent_channels=4, attention_head_dim=8, encoder_block_out_channels=widths, decoder_block_out_channels=widths,
            encoder_layers_per_block=layers, decoder_layers_per_block=layers,
            encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), scaling_factor=0.7,
        )
    )  # fmt: skip


def case(name):
    """What is computed in parts, the same by the plain layers, and an input of three pictures of 16 x 24."""
    torch.manual_seed(1)
    pictures = torch.rand(3, 3, 16, 24) * 2 - 1
    if name == "emu3_encoder":
        tokenizer = emu3_tokenizer()
        return tokenizer.latents, lambda x: emu3_latents(tokenizer, x), pictures
    if name == "emu3_decoder":
        tokenizer = emu3_tokenizer()
        return tokenizer.decode_embeddings, lambda x: emu3_pixels(tokenizer, x), torch.randn(3, 4, 4, 6)
    if name == "vqgan_encoder":
        encoder = seeded(plain_vqgan.plain_encoder())
        return lambda x: recompute.in_chunks(encoder, 16 * 24, x), lambda x: plain_vqgan.encoded(encoder, x), pictures
    if name == "vqgan_decoder":
        decoder = seeded(plain_vqgan.plain_decoder())
        chunks = lambda x: recompute.in_chunks(decoder, 16 * 24, x)  # noqa: E731
        return chunks, lambda x: plain_vqgan.decoded(decoder, x), torch.randn(3, 5, 4, 6)
    if name == "janus_decoder":
        tokenizer = janus_tokenizer()
        plain = lambda x: tokenizer.decoder(tokenizer.post_quant_conv(x))  # noqa: E731
        return tokenizer.decode_embeddings, plain, torch.randn(3, 4, 4, 6)
    coder = openuni_autoencoder()
    staged = lambda x: autoencoding.decode(coder, x)  # noqa: E731
    return staged, lambda x: coder.decode(x / 0.7).sample, torch.randn(3, 4, 4, 6)


@pytest.mark.parametrize("pixels", CHUNKS)
@pytest.mark.parametrize("name", PARTS)
def test_values_and_gradients_are_those_of_the_plain_layers(monkeypatch, name, pixels):
    monkeypatch.setattr(recompute, "PIXELS_AT_A_TIME", pixels)
    monkeypatch.setattr(sliced_norm, "SLICE_ELEMENTS", 5000)  # several slices, the last one shorter
    staged, plain, x = case(name)
    x.requires_grad_()
    # In the same chunks: convolutions of one picture and of three are rounded differently.
    expected, found = torch.cat([plain(part) for part in x.split(max(1, pixels // (16 * 24)))]), staged(x)
    # Plain layers of vqgan are written with other kernels; some CPUs round a chunk of two pictures in another way.
    rounding = 1e-5 if name.startswith("vqgan") else 5e-6
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    weights = torch.randn_like(expected)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), [x])
    (ours,) = torch.autograd.grad((found * weights).sum(), [x])
    assert all(row.abs().max() > 0 for row in theirs)
    within = 1e-6 + rounding
    torch.testing.assert_close(ours, theirs, rtol=within, atol=within * theirs.abs().max().item())
    with torch.no_grad():
        assert torch.equal(staged(x), found), "with and without a gradient the same"


@pytest.mark.parametrize("name", PARTS)
def test_the_graph_keeps_little_and_the_backward_takes_one_picture_at_a_time(monkeypatch, name):
    monkeypatch.setattr(recompute, "PIXELS_AT_A_TIME", 1)
    staged, plain, x = case(name)

    def held(run, rows):
        part = x[:rows].detach().requires_grad_()
        with LiveBytes() as live:
            result = run(part)
            kept = live.current
            result.sum().backward()
        return kept, live.peak

    kept, _ = held(plain, 1)
    ours, peak = held(staged, 1)
    assert ours < kept / 2
    assert held(staged, 3)[1] - peak < 2 * ours + 3 * x[0].nbytes + 0.1 * peak


def test_targets_are_encoded_and_decoded_in_chunks(monkeypatch):
    janus, emu3, coder = janus_tokenizer(), emu3_tokenizer(), openuni_autoencoder()
    calls = []
    for layers in (janus.encoder, emu3.encoder.conv_in, coder.encoder):
        layers.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    pixels = torch.rand(5, 3, 16, 16) * 2 - 1
    for encode in (janus.encode, emu3.encode, lambda x: autoencoding.encode(coder, x)):
        monkeypatch.setattr(recompute, "PIXELS_AT_A_TIME", 2 * 16 * 16)
        found = encode(pixels)
        assert calls == [2, 2, 1]
        calls.clear()
        monkeypatch.setattr(recompute, "PIXELS_AT_A_TIME", 5 * 16 * 16)
        whole = encode(pixels)
        assert calls == [5] and found.shape == whole.shape
        torch.testing.assert_close(found, whole, rtol=0, atol=0 if found.dtype == torch.int64 else 1e-5)
        calls.clear()


def test_a_tokenizer_in_training_runs_the_plain_layers():
    tokenizer = janus_tokenizer().train().requires_grad_(True)
    tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1).reconstruction.square().mean().backward()
    assert all(p.grad is not None for name, p in tokenizer.named_parameters() if not name.startswith("quantize"))


@pytest.fixture(scope="module")
def released_emu3():
    """Emu3 as released, pictures of 720 x 720, on the meta device; one language layer, which takes no part here."""
    config = Emu3Config(text_config={"vocab_size": 184622, "hidden_size": 4096, "num_hidden_layers": 1})
    grid = CodeGrid(height=90, width=90, first=151854, codebook=32768, line_end=151846)
    processor = SimpleNamespace(format=SimpleNamespace(grid=grid), source_size=720)
    with torch.device("meta"):
        model = Emu3(config, processor, attention="sdpa", gradient_checkpointing=False)
        model.to(torch.bfloat16).requires_grad_(False)
        model.frozen.keep(VisionTokenizer(config.vq_config))
    return model


def test_the_attack_on_a_720_pixel_picture_fits(released_emu3):
    """Hidden states -> codes and their mean -> pixels -> codes with a gradient -> tokens, and back: 60 GB with plain layers."""
    hidden = torch.zeros(1, 8100, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with LiveBytes() as live:
        pixels = released_emu3.decode(hidden, anchor=torch.zeros(1, 8100, dtype=torch.int64, device="meta")).pixels
        assert pixels.shape == (1, 3, 720, 720)
        tokens = released_emu3.visual_tokens(released_emu3.as_source(pixels).unsqueeze(1))
        kept = live.current
        tokens.sum().backward()
    assert hidden.grad is not None
    assert live.peak <= 5 * GB and kept <= 1.5 * GB


def test_sixteen_720_pixel_pictures_are_encoded_and_decoded_in_few_gigabytes(released_emu3):
    with LiveBytes() as live:
        released_emu3.decode_target(torch.zeros(16, 8100, dtype=torch.int64, device="meta"))
        decoded = live.peak
        live.reset_peak()
        released_emu3.encode_target(torch.zeros(16, 3, 720, 720, device="meta"))
    assert decoded < 4 * GB and live.peak < 3 * GB


def test_released_janus_decodes_with_a_gradient_in_little_memory():
    with torch.device("meta"):
        tokenizer = ImageTokenizer(JanusConfig().vq_config).eval().requires_grad_(False)
        quant = torch.zeros(4, tokenizer.config.embed_dim, 24, 24, requires_grad=True)
        with LiveBytes() as live:
            pixels = tokenizer.decode_embeddings(quant)
            kept = live.current
            pixels.sum().backward()
    assert pixels.shape == (4, 3, 384, 384) and kept < 0.2 * GB and live.peak < 3.5 * GB
