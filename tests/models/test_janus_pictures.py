"""Hidden states and codes to pixels, sampling and answering."""

from __future__ import annotations

import torch

from megaunigame.models.causal.decoding import picker
from tests.models.shared import losses_of_training

FAMILY = "janus"


def test_drawn_codes_follow_the_distribution():
    logits = torch.log(torch.tensor([0.1, 0.0, 0.6, 0.3])).expand(20_000, 4)
    drawn = picker(1.0, torch.Generator().manual_seed(0))(logits)
    frequencies = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(frequencies, torch.tensor([0.1, 0.0, 0.6, 0.3]), rtol=0, atol=0.015)
    assert torch.equal(picker(0, torch.Generator())(logits[:3]), torch.full((3,), 2))
    sharper = torch.tensor([0.1, 0.0, 0.6, 0.3]).square()  # a temperature of 1/2 squares what the likelihoods are to each other
    drawn = picker(0.5, torch.Generator().manual_seed(0))(logits)
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / len(drawn), sharper / sharper.sum(), rtol=0, atol=0.015)


def test_the_unconditional_prompt_keeps_its_ends_only(model):
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"])
    pad, attention = model.processor.pad_id, inputs.attention
    expected = inputs.tokens.clone()
    for row, real in zip(expected, attention, strict=True):
        row[real.nonzero().squeeze(1)[1:-1]] = pad
    embeds, read = model.unconditional(inputs)
    assert torch.equal(embeds, model.language_model.embed_tokens(expected)) and torch.equal(read, attention)
    assert (expected != inputs.tokens).any(1).all() and not attention.all()


def test_the_reconstruction_is_the_picture_of_the_codes(model, picture):
    tokenizer = model.image_tokenizer
    pixels = torch.stack([picture(0), picture(1)]).float() / 127.5 - 1
    output = tokenizer(pixels)
    assert torch.equal(output.codes, tokenizer.encode(pixels))
    torch.testing.assert_close(output.reconstruction, tokenizer.decode_codes(output.codes), rtol=0, atol=1e-5)
    norms = tokenizer.latents(pixels).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_image_tokenizer_alone_can_be_trained(model, picture):
    tokenizer = model.image_tokenizer.requires_grad_(True).train()
    pixels = torch.stack([picture(s) for s in range(4)]).float() / 127.5 - 1

    def loss():
        output = tokenizer(pixels)
        return (output.reconstruction - pixels).square().mean() + output.codebook_loss + output.commit_loss

    losses = losses_of_training(tokenizer, loss, steps=12, lr=1e-3)
    assert losses[-1] < 0.8 * losses[0]
    assert tokenizer.training and tokenizer.encoder.mid.training
