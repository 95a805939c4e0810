"""Hidden states and codes to pixels, sampling and answering."""

from __future__ import annotations

import torch

from megaunigame.models.causal.decoding import picker
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import check_answers_equal_decoding_without_a_cache

PLAN = plan_from([RowRequest("u", UNDERSTAND, "s", 1), RowRequest("g", GENERATE, "s", 1, takes_source=True)])


def states(model, picture):
    rows = [GenerateRow("a cube", picture(0)), GenerateRow("a ball", picture(1))]
    inputs = model.processor.collate(PLAN, GENERATE, rows, [1, 1], ["a", "b"])
    with torch.no_grad():
        return model(GENERATE, inputs, predict=True)


def test_decode_shows_the_likeliest_codes_and_is_differentiable(model, picture):
    output = states(model, picture)
    hidden = output.hidden.clone().requires_grad_()
    delta = torch.zeros_like(hidden, requires_grad=True)
    pixels = model.decode(hidden, delta).pixels
    torch.testing.assert_close(pixels, model.decode_target(output.predictions), rtol=0, atol=1e-5)
    assert pixels.shape == (2, 3, 16, 16) and pixels.abs().max() <= 1
    pixels.square().mean().backward()
    assert hidden.grad.abs().max() > 0
    assert torch.equal(hidden.grad, delta.grad)
    assert all(p.grad is None for p in model.image_tokenizer.parameters())


def test_pixels_reach_the_understand_pass_with_a_gradient(model, picture):
    """The way of an adversary: delta -> pixels -> understanding loss, through a frozen tower."""
    model.requires_grad_(False)
    hidden = states(model, picture).hidden[:1]
    delta = torch.zeros_like(hidden, requires_grad=True)
    inputs = model.processor.collate(PLAN, UNDERSTAND, [UnderstandRow([picture(0)], [("what ?", "ball")])], [0], ["a"])
    inputs.images = model.decode(hidden, delta).pixels.unsqueeze(1)
    (gradient,) = torch.autograd.grad(model(UNDERSTAND, inputs).loss_sum.sum(), [delta])
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_greedy_sampling_equals_decoding_without_a_cache(model, picture):
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    cached = model.sample_codes(inputs, guidance=3.0, pick=lambda logits: logits.argmax(-1))
    assert cached.shape == (2, 16)
    with torch.no_grad():
        empty, _ = model.unconditional(inputs)
        prompts = torch.cat([model.embed(inputs), empty])
        attention = torch.cat([inputs.attention, inputs.attention])
        codes = torch.zeros(2, 0, dtype=torch.long)
        for _ in range(16):
            read = model.embed_codes(codes).repeat(2, 1, 1)
            real = torch.cat([attention, torch.ones(4, codes.shape[1], dtype=torch.bool)], dim=1)
            hidden = model._read(torch.cat([prompts, read], dim=1), real)[:, -1]
            conditional, without = model.model.generation_head(hidden).chunk(2)
            step = (without + 3.0 * (conditional - without)).argmax(-1)
            codes = torch.cat([codes, step[:, None]], dim=1)
    assert torch.equal(cached, codes)


def test_teacher_forcing_on_sampled_codes_predicts_them_again(model):
    inputs = model.processor.generate_prompts(["a cube"])
    codes = model.sample_codes(inputs, guidance=1.0, pick=lambda logits: logits.argmax(-1))
    with torch.no_grad():
        assert torch.equal(model.predict_codes(inputs, codes, predict=True).predictions, codes)


def test_sampling_repeats_with_the_generator_and_keeps_the_mode(model):
    inputs = model.processor.generate_prompts(["a cube", "a ball"])
    model.train()
    pictures = [
        model.sample(inputs, guidance=2.0, temperature=1.0, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    assert pictures[0].shape == (2, 3, 16, 16) and pictures[0].abs().max() <= 1
    assert model.training and model.language_model.training


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


def test_answers_equal_decoding_without_a_cache(model, picture):
    check_answers_equal_decoding_without_a_cache(model, picture)


def test_an_ended_answer_repeats_the_end_token(model):
    inputs = model.processor.prompt_inputs([[]], ["how many ?"])
    first = model.answer(inputs, max_new_tokens=1)[0, 0].item()
    model.processor.format.eos = first  # whatever comes first now ends the answer
    assert model.answer(inputs, max_new_tokens=4).tolist() == [[first] * 4]


def test_the_reconstruction_is_the_picture_of_the_codes(model, picture):
    tokenizer = model.image_tokenizer
    pixels = torch.stack([picture(0), picture(1)]).float() / 127.5 - 1
    output = tokenizer(pixels)
    assert torch.equal(output.codes, tokenizer.encode(pixels))
    torch.testing.assert_close(output.reconstruction, tokenizer.decode_codes(output.codes), rtol=0, atol=1e-5)
    norms = tokenizer.latents(pixels).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
