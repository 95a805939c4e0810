"""Hidden states and codes to pixels, pixels to codes with a gradient, sampling and answering."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.causal import head as token_head
from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.emu3 import Emu3
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import counted_calls, generate, understand


def states(model, picture):
    with torch.no_grad():
        rows = [GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1))]
        return model(generate(model, *rows), predict=True)


def greedy(logits):
    return logits.argmax(-1)


def test_codes_are_expected_without_all_logits(emu3, picture, monkeypatch):
    """As from all logits at once, of which none is made."""
    hidden = states(emu3, picture).hidden.clone().requires_grad_()
    plain_codes, plain = CodeModel.expected_codes(emu3, hidden)
    monkeypatch.setattr(Emu3, "code_logits", None)
    monkeypatch.setattr(token_head, "SLICE_ELEMENTS", 32 * 10)
    codes, mean = emu3.expected_codes(hidden)
    assert torch.equal(codes, plain_codes) and mean.shape == (2, 16, 4)
    torch.testing.assert_close(mean, plain, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(mean)
    (expected,) = torch.autograd.grad((plain * weights).sum(), [hidden])
    (found,) = torch.autograd.grad((mean * weights).sum(), [hidden])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_an_anchor_stays_where_the_perturbation_changes_nothing(emu3, picture):
    output = states(emu3, picture)
    with torch.no_grad():
        kept = emu3.decode(output.hidden, torch.zeros_like(output.hidden), output.target)
        moved = emu3.decode(output.hidden, 2 * torch.randn_like(output.hidden), output.target)
    torch.testing.assert_close(kept.pixels, emu3.decode_target(output.target), rtol=0, atol=1e-5)
    assert (kept.changed == 0).all() and (moved.changed > 0).all()


def test_a_gradient_into_pictures_changes_no_value(emu3, picture):
    images = understand(emu3, UnderstandRow([picture(0), picture(1)], [("what ?", "a ball")])).images
    plain = emu3.visual_tokens(images)
    wanted = images.clone().requires_grad_()
    assert torch.equal(emu3.visual_tokens(wanted), plain) and plain.shape == (1, 2, 9, 64)
    with torch.no_grad():
        assert torch.equal(emu3.visual_tokens(wanted), plain)


def test_towards_the_embedding_the_gradient_is_that_of_plain_tokens(emu3, picture):
    images = understand(emu3, UnderstandRow([picture(0)], [("what ?", "a ball")])).images
    table = emu3.language_model.embed_tokens.weight
    weights = torch.randn(1, 1, 9, 64)
    (plain,) = torch.autograd.grad((emu3.visual_tokens(images) * weights).sum(), [table])
    (soft,) = torch.autograd.grad((emu3.visual_tokens(images.requires_grad_()) * weights).sum(), [table])
    assert torch.equal(soft, plain)


def test_the_gradient_into_pictures_is_that_of_a_soft_choice(emu3, picture):
    """The gradient of the mean embedding of the nearest codes, weighed by a softmax over their distances."""
    torch.manual_seed(0)
    tokenizer = emu3.vision_tokenizer.double()
    table = emu3.language_model.embed_tokens.weight.detach().double()
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
        return ((table[base.flatten(1, 2)[0] + emu3.grid.first] * shares.unsqueeze(-1)).sum(1) * wish).sum()

    (expected,) = torch.autograd.grad(mean(pixels.requires_grad_()), [pixels])
    (found,) = torch.autograd.grad((emu3.visual_tokens(pixels.unsqueeze(1))[0, 0] * wish).sum(), [pixels])
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_sampling_equals_decoding_without_a_cache(emu3, picture, guidance):
    inputs = emu3.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    calls = counted_calls(emu3.language_model)
    cached = emu3.sample_codes(inputs, guidance=guidance, pick=greedy)
    assert cached.shape == (2, 16) and len(calls) == emu3.calls_per_sample == 19
    empty = torch.tensor([emu3.processor.unconditional_tokens()])
    with torch.no_grad():
        embeds = emu3.embed(inputs)
        for row in range(2):
            prompt = embeds[row, inputs.attention[row]][None]
            codes = torch.zeros(1, 0, dtype=torch.long)
            for place in range(16):
                drawn = codes + emu3.grid.first
                ends = [emu3.language_model.embed_tokens(t) for t in drawn.split(4, dim=1)] if place else []
                line_end = emu3.language_model.embed_tokens(torch.tensor([[emu3.grid.line_end]]))
                read = [x for end in ends for x in ((end, line_end) if end.shape[1] == 4 else (end,))]
                logits = [
                    emu3.code_logits(emu3.language_model(inputs_embeds=torch.cat([start, *read], 1)).last_hidden_state[:, -1])
                    for start in (prompt, emu3.language_model.embed_tokens(empty))
                ]
                code = (logits[1] + guidance * (logits[0] - logits[1])).argmax(-1)
                codes = torch.cat([codes, code[None]], dim=1)
            assert codes[0].tolist() == cached[row].tolist()


def test_what_perturbs_codes_leaves_line_ends_alone(emu3):
    inputs, shapes = emu3.processor.generate_prompts(["a cube"]), []
    plain = emu3.sample_codes(inputs, guidance=1.0, pick=greedy)
    moved = emu3.sample_codes(inputs, guidance=1.0, pick=greedy, perturb=lambda e: shapes.append(e.shape) or 3 * e.flip(-1))
    assert shapes == [(1, 1, 64)] * 15 and plain[0, 0] == moved[0, 0] and not torch.equal(plain, moved)


def test_a_generated_picture_is_resized_to_a_source(emu3, picture):
    pixels = picture(0)[None].float() / 127.5 - 1
    assert emu3.as_source(pixels).shape == (1, 3, 12, 12)
    small = pixels[..., :12, :12]
    assert torch.equal(emu3.as_source(small), small)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 2), slice(1, 4), slice(0, 4)])
def test_rows_without_a_gradient_are_encoded_as_they_always_are(emu3, picture, rows, monkeypatch):
    """Next to an adversary's pictures, clean ones keep no graph of the tokenizer."""
    images = torch.stack([emu3.processor.normalize_source(picture(seed)) for seed in range(4)]).unsqueeze(1)
    asked = []
    neighbors = emu3.vision_tokenizer.neighbors
    monkeypatch.setattr(emu3.vision_tokenizer, "neighbors", lambda pixels: asked.append(len(pixels)) or neighbors(pixels))

    def tokens_and_gradient(gradient_rows):
        attacked = images[rows].clone().requires_grad_()
        joined = torch.cat([images[: rows.start], attacked, images[rows.stop :]])
        tokens = emu3.visual_tokens(joined, gradient_rows)
        (tokens * torch.linspace(-1, 1, tokens.numel()).view_as(tokens)).sum().backward()
        return tokens.detach(), attacked.grad

    theirs, expected = tokens_and_gradient(None)
    ours, got = tokens_and_gradient(rows)
    assert asked == [4, rows.stop - rows.start]
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert got.abs().max() > 1e-6
