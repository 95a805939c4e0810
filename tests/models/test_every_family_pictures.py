"""Pictures and answers of every family: decoding, sampling, answering."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.causal import masks
from megaunigame.models.causal.decoding import following
from megaunigame.models.causal.own_rows import own_row
from megaunigame.step.rows import UnderstandRow
from tests.models.shared import CODE_FAMILIES, ONE_BY_ONE, counted_calls, generated, greedy, understand


@pytest.mark.parametrize("anchored", [False, True])
def test_pixels_reach_the_understand_pass_with_a_gradient(model, picture, anchored):
    """The way of an adversary: delta -> pixels -> source -> understanding loss, through frozen weights."""
    model.requires_grad_(False)
    output = generated(model, picture)
    delta = torch.zeros_like(output.hidden[:1], requires_grad=True)
    inputs = understand(model, UnderstandRow([picture(0)], [("what ?", "ball")]))
    pixels = model.decode(output.hidden[:1], delta, output.target[:1] if anchored else None).pixels
    shown = model.as_source(pixels)
    assert shown.shape == inputs.images[:, 0].shape
    inputs.images = shown.unsqueeze(1)
    (gradient,) = torch.autograd.grad(model(inputs).loss_sum.sum(), [delta])
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_makes_a_fixed_number_of_calls_and_repeats_with_the_generator(model, picture, guidance):
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    calls, tower = counted_calls(model.language_model), model.vision_tower
    model.train()
    if tower is not None:
        tower.eval()
    pictures = [
        model.sample(inputs, guidance=guidance, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert len(calls) == 3 * model.calls_per_sample
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])
    side = model.processor.image_size
    assert pictures[0].shape == (2, 3, side, side) and pictures[0].abs().max() <= 1
    assert model.training and model.language_model.training and (tower is None or not tower.training)


def test_answers_equal_decoding_without_a_cache(model, picture):
    inputs = model.processor.prompt_inputs([[picture(0)], []], ["what color is the cube ?", "how many ?"])
    calls = counted_calls(model.language_model)
    answers = model.answer(inputs, max_new_tokens=6)
    assert answers.shape == (2, 6) and len(calls) == 6
    with torch.no_grad():
        embeds, attention, tokens = model.embed(inputs), inputs.attention, []
        opened, positions = model.opened(inputs), model.positions(inputs)
        for _ in range(6):
            read = model._read(embeds, attention, opened=opened, positions=positions)
            tokens.append(model.lm_head(read[:, -1]).argmax(-1))
            opened = None if opened is None else masks.lengthened(opened, 1)
            positions = None if positions is None else following(positions, 1)
            embeds = torch.cat([embeds, model.language_model.embed_tokens(tokens[-1])[:, None]], dim=1)
            attention = torch.cat([attention, torch.ones(2, 1, dtype=torch.bool)], dim=1)
    end = model.processor.eos_id
    for answer, expected in zip(answers.tolist(), torch.stack(tokens, dim=1).tolist(), strict=True):
        length = answer.index(end) + 1 if end in answer else len(answer)
        assert answer[:length] == expected[:length] and set(answer[length:]) <= {end}


def test_an_ended_answer_repeats_the_end_token(model):
    inputs = model.processor.prompt_inputs([[]], ["how many ?"])
    first = model.answer(inputs, max_new_tokens=1)[0, 0].item()
    model.processor.format.eos = first  # whatever comes first now ends the answer
    assert model.answer(inputs, max_new_tokens=4).tolist() == [[first] * 4]


@pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
def test_decode_shows_the_likeliest_codes_and_is_differentiable(model, picture):
    output = generated(model, picture)
    hidden = output.hidden.clone().requires_grad_()
    delta = torch.zeros_like(hidden, requires_grad=True)
    decoded = model.decode(hidden, delta)
    torch.testing.assert_close(decoded.pixels, model.decode_target(output.predictions), rtol=0, atol=1e-5)
    side = model.processor.image_size
    assert decoded.pixels.shape == (2, 3, side, side) and decoded.pixels.abs().max() <= 1 and (decoded.changed == 0).all()
    decoded.pixels.square().mean().backward()
    assert hidden.grad.abs().max() > 0 and torch.equal(hidden.grad, delta.grad)
    assert all(p.grad is None for p in model.frozen.module.parameters())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("tiny", ONE_BY_ONE, indirect=True)
def test_greedy_sampling_equals_decoding_without_a_cache(model, picture, guidance):
    """Row by row, without padding; in Emu3 each line of codes ends with a token that is not drawn."""
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    calls = counted_calls(model.language_model)
    cached = model.sample_codes(inputs, guidance=guidance, pick=greedy)
    assert cached.shape == (2, 16) and len(calls) == model.calls_per_sample == model.processor.after_prompt
    width, line_end = model.lines

    def logits(start, codes):
        read = [start]
        for line in model.embed_codes(codes).split(width or 16, dim=1):
            read += [line, line_end.view(1, 1, -1)] if line_end is not None and line.shape[1] == width else [line]
        return model.code_logits(model.language_model(inputs_embeds=torch.cat(read, dim=1)).last_hidden_state[:, -1])

    with torch.no_grad():
        asked = (model.embed(inputs), inputs.attention), model.unconditional(inputs)
        for row in range(2):
            prompt, empty = (embeds[row, attention[row]][None] for embeds, attention in asked)
            codes = torch.zeros(1, 0, dtype=torch.long)
            for _ in range(16):
                conditional, without = logits(prompt, codes), logits(empty, codes)
                codes = torch.cat([codes, greedy(without + guidance * (conditional - without))[None]], dim=1)
            assert codes[0].tolist() == cached[row].tolist()


def test_an_anchor_stays_where_the_perturbation_changes_nothing(model, picture):
    output = generated(model, picture)
    with torch.no_grad():
        encoded = model.decode_target(output.target)
        moved = model.decode(output.hidden, 2 * torch.randn_like(output.hidden), output.target)
        for delta in (None, torch.zeros_like(output.hidden)):
            kept = model.decode(output.hidden, delta, output.target)
            torch.testing.assert_close(kept.pixels, encoded, rtol=0, atol=1e-5 if model.has_codes else 0)
            assert (kept.changed == 0).all()
    side = model.processor.image_size
    assert (moved.changed > 0).all() and encoded.shape == (2, 3, side, side) and encoded.abs().max() <= 1


@pytest.mark.parametrize("tiny", ONE_BY_ONE, indirect=True)
def test_teacher_forcing_on_sampled_codes_predicts_them_again(model):
    inputs = model.processor.generate_prompts(["a cube"])
    codes = model.sample_codes(inputs, guidance=1.0, pick=greedy)
    with torch.no_grad():
        assert torch.equal(model.predict_codes(inputs, codes, predict=True).predictions, codes)


def own(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_picture_with_its_own_generator_is_the_same_in_any_batch(model, picture):
    prompts, sources = ["a small green cone behind", "a cube", "a cube"], [None, picture(0), None]
    options = {"guidance": 2.0, "temperature": 1.0, "lockstep": False}
    together = model.sample(model.processor.generate_prompts(prompts, sources), generator=own(5, 6, 7), **options)
    for row, seed in enumerate((5, 6, 7)):
        inputs = model.processor.generate_prompts([prompts[row]], [sources[row]])
        alone = model.sample(inputs, generator=own(seed), **options)
        # Codes are chosen, and decoded one by one: the bits are equal. Latents differ by rounding.
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=0 if model.has_codes else 1e-4)
        other = model.sample(inputs, generator=own(seed + 10), **options)
        assert not torch.allclose(other[0], together[row], atol=1e-2)


def test_an_answer_with_its_own_generator_is_the_same_in_any_batch(model, picture):
    images, questions = [[picture(0)], [], [picture(1), picture(2)]], ["what color is the cube ?", "how many ?", "what ?"]
    options = {"max_new_tokens": 9, "temperature": 1.0, "lockstep": False}
    together = model.answer(model.processor.prompt_inputs(images, questions), generator=own(5, 6, 7), **options)
    assert len(set(map(tuple, together.tolist()))) == 3
    for row, seed in enumerate((5, 6, 7)):
        inputs = model.processor.prompt_inputs([images[row]], [questions[row]])
        (alone,) = model.answer(inputs, generator=own(seed), **options).tolist()
        ended = alone + [model.processor.eos_id] * (together.shape[1] - len(alone))
        assert ended == together[row].tolist()


def test_answers_stop_when_all_have_ended(model):
    inputs = model.processor.prompt_inputs([[], []], ["how many ?", "how many ?"])
    model.processor.format.eos = model.answer(inputs, max_new_tokens=2)[0, 1].item()
    calls = counted_calls(model.language_model)
    early = model.answer(inputs, max_new_tokens=6, lockstep=False)
    assert len(calls) == early.shape[1] <= 2
    assert torch.equal(model.answer(inputs, max_new_tokens=6)[:, : early.shape[1]], early)


def test_drawing_needs_a_generator_for_each_row(model):
    with pytest.raises(ValueError, match="2 generators for 1 rows"):
        model.sample(model.processor.generate_prompts(["a"]), guidance=1.0, temperature=1.0, generator=own(1, 2))
    with pytest.raises(ValueError, match="Temperature 1.0 draws"):
        model.answer(model.processor.prompt_inputs([[]], ["a"]), max_new_tokens=1, temperature=1.0)


def test_a_row_of_a_batch_is_what_it_is_when_collated_by_itself(model, picture):
    images, questions = [[picture(0)], [], [picture(1), picture(2)]], ["what color is the cube ?", "how many ?", "what ?"]
    batch = model.processor.prompt_inputs(images, questions)
    prompts, sources = ["a small green cone behind", "a cube"], [None, picture(0)]
    drawn = model.processor.generate_prompts(prompts, sources)
    pairs = [(own_row(batch, n), model.processor.prompt_inputs([images[n]], [questions[n]])) for n in range(3)]
    pairs += [(own_row(drawn, 0), model.processor.generate_prompts(prompts[:1]))]
    pairs += [(own_row(drawn, 1), model.processor.generate_prompts(prompts[1:], sources[1:]))]
    for row, alone in pairs:
        for name in ("tokens", "attention", "image_positions", "images", "image_valid"):
            mine, expected = getattr(row, name), getattr(alone, name)
            assert (mine is None) == (expected is None) and (mine is None or torch.equal(mine, expected)), name
