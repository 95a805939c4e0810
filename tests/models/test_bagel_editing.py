"""BAGEL's requests with several source pictures and texts between them, against one dense sequence with the official rules."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.errors import ConfigError, DataError
from megaunigame.models.bagel.sampling import contexts
from megaunigame.models.text.pictures import TO_SQUARE
from megaunigame.step.requests import CROP, GENERATE, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, ShownPicture
from tests.models.dense_bagel import Latents, Lost, Noised, Seen, Text, dense
from tests.models.shared import generate
from tests.models.test_bagel_passes import called

FAMILY = "bagel"
TIMES = torch.tensor([0.2, 0.5, 0.7, 0.9, 0.4])


@pytest.fixture
def rows(picture):
    """Rows of one picture and of several, with and without all of their conditions, of different lengths."""
    two = [ShownPicture(picture(1)), "in the colors of", ShownPicture(picture(2))]
    lost = [ShownPicture(picture(1), latents=False), ShownPicture(picture(2), seen=False), "a ball", ShownPicture(picture(3))]
    return [
        GenerateRow("paint the small cube", picture(0), context=two),
        GenerateRow("a cone behind two blue balls", picture(4), context=[ShownPicture(picture(5))]),
        GenerateRow("a cube", picture(6), context=lost),
        GenerateRow("not read", picture(7), context=["a ball", ShownPicture(picture(8), False, False)], unconditional=True),
        GenerateRow("a small green cone", picture(9)),
    ]


def latents_of(model, picture):
    return model.encode_target(model.processor.target_pixels(picture, CROP, model.processor.image_size)[None])[0]


def seen(model, picture):
    return Seen(model.processor.normalize_source(TO_SQUARE[CROP](picture, model.processor.source_size)))


def parts_of(model, row, noise, t):
    """A row in the words of the dense sequence."""
    parts = []
    for part in row.context:
        if isinstance(part, str):
            parts.append(Text(part))
            continue
        parts.append(Latents(latents_of(model, part.picture)) if part.latents else Lost())
        parts.append(seen(model, part.picture) if part.seen else Lost())
    parts += [] if row.unconditional else [Text(row.prompt)]
    return [*parts, Noised(latents_of(model, row.target), noise, float(t))]


def matched(model, inputs, noise, times):
    sources = None if inputs.source_pixels is None else model.encode_target(inputs.source_pixels.flatten(0, 1))
    return model.match(inputs, model.encode_target(inputs.targets), times, noise, sources)


@pytest.fixture
def noise(model, rows):
    shape = len(rows), *latents_of(model, rows[0].target).shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_batch_of_requests_is_each_as_one_dense_sequence(model, rows, noise):
    inputs = generate(model, *rows)
    assert inputs.images.shape[:2] == (5, 2) and inputs.source_pixels.shape[:2] == (5, 2)
    with torch.no_grad():
        ours = matched(model, inputs, noise, TIMES)
        for number, row in enumerate(rows):
            ((hidden, errors),) = dense(model, parts_of(model, row, noise[number], TIMES[number]))
            torch.testing.assert_close(ours.hidden[number], hidden, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.loss_sum[number], errors.mean(1).sum(), rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_are_what_they_are_alone(model, rows, noise):
    with torch.no_grad():
        together = matched(model, generate(model, *rows), noise, TIMES).loss_sum
        alone = [
            matched(model, generate(model, row), noise[n : n + 1], TIMES[n : n + 1]).loss_sum for n, row in enumerate(rows)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-4)


def test_two_pictures_drawn_in_one_conversation_are_two_rows(model, picture, noise):
    """A noised picture is read by nothing after it and has no position, so the official row of two edits has that of two."""
    first = GenerateRow("a red cube", picture(1), context=[ShownPicture(picture(0))])
    second = GenerateRow("now a ball", picture(2), context=[*first.context, first.prompt, ShownPicture(picture(1))])
    whole = parts_of(model, second, noise[1], 0.8)
    whole.insert(3, Noised(latents_of(model, picture(1)), noise[0], 0.3))  # before its clean copy
    with torch.no_grad():
        ours = matched(model, generate(model, first, second), noise[:2], torch.tensor([0.3, 0.8]))
        theirs = dense(model, whole)
    for row, (hidden, errors) in enumerate(theirs):
        torch.testing.assert_close(ours.hidden[row], hidden, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.loss_sum[row], errors.mean(1).sum(), rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_every_seen_source_and_no_other(model, rows):
    inputs = generate(model, *rows)
    inputs = dataclasses.replace(
        inputs, images=inputs.images.requires_grad_(), source_gradient=torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0])
    )
    model(inputs).loss_sum.sum().backward()
    reached = inputs.images.grad.flatten(2).norm(dim=2)
    assert (reached > 0).tolist() == [[True, True], [False, False], [True, True], [False, False], [False, False]]
    at_full, half = inputs.images.grad[2].clone(), dataclasses.replace(inputs, source_gradient=None)
    inputs.images.grad = None
    model(half).loss_sum.sum().backward()
    torch.testing.assert_close(inputs.images.grad[2], 2 * at_full, rtol=1e-4, atol=1e-6)


def test_a_pass_calls_the_same_modules_for_any_number_of_sources(model, rows, picture):
    with torch.no_grad():
        asked = [rows, rows[1:2], rows[3:], [GenerateRow("a cube", picture(0), picture(1)), None], [None]]
        calls = [called(model, generate(model, *some)) for some in asked]
    assert all(each == calls[0] for each in calls)


def test_training_learns_from_rows_with_several_sources(model, rows):
    inputs = generate(model.train(), *rows)
    model(inputs).loss_sum.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    groups = {model.group_of(name) for name in trained}
    assert groups == {"vision", "aligner", "lm", "lm_gen", "generation"}


def test_guidance_drops_the_last_text_or_all_pictures(model, rows):
    inputs = generate(model, *rows[:2])
    tokens, names = inputs.tokens[0], model.processor.format
    clean = model.clean_tokens(model.encode_target(inputs.source_pixels.flatten(0, 1)), 2)
    drawn = model.processor.after_prompt
    whole, textless, pictureless = (layout.mask[:, -1] for layout in contexts(model, inputs, clean, drawn))
    length, latents = len(tokens), clean.shape[2]
    lost = tokens[whole[0, :length] & ~textless[0, :length]].tolist()
    assert lost == [names.bos, *names.plain.encode("paint the small cube").tokens, names.eos]
    assert torch.equal(whole[:, length:], textless[:, length:])
    assert whole[:, length:].sum(1).tolist() == [2 * latents + drawn, latents + drawn]
    kept = tokens[pictureless[0, :length]].tolist()
    texts = [[names.bos, *names.plain.encode(text).tokens, names.eos] for text in ("in the colors of", "paint the small cube")]
    assert kept == [*texts[0], *texts[1], names.begin, names.end]
    assert pictureless[:, length:].sum(1).tolist() == [drawn, drawn]


def test_what_is_drawn_depends_on_each_source(model, rows):
    def drawn(inputs):
        return model.sample(inputs, guidance=2.0, temperature=1.0, generator=torch.Generator().manual_seed(0))

    inputs, same = model.processor.edit_prompts([rows[0].prompt], [rows[0].context]), generate(model, rows[0])
    assert all(torch.equal(getattr(inputs, name), getattr(same, name)) for name in ("tokens", "images", "source_pixels"))
    before = drawn(inputs)
    for number in (0, 1):
        for name in ("images", "source_pixels"):
            other = getattr(inputs, name).clone()
            other[0, number] = torch.rand_like(other[0, number]) * 2 - 1
            assert not torch.allclose(drawn(dataclasses.replace(inputs, **{name: other})), before, atol=1e-4), (name, number)


def test_the_largest_rows_have_all_their_sources(model):
    plan = plan_from([RowRequest("e", GENERATE, "s", 2, takes_source=True, context_pictures=3)])
    inputs = model.processor.largest(plan, GENERATE)
    assert inputs.images.shape[:2] == inputs.source_pixels.shape[:2] == (2, 3)
    latents = (inputs.source_pixels.shape[1] + 1) * model.processor.after_prompt
    assert (inputs.attention.sum(1) + latents).tolist() == [model.processor.max_length] * 2 and inputs.cut.all()


def test_rows_that_do_not_fit_are_refused(model, picture):
    processor = model.processor
    four = RowRequest("e", GENERATE, "s", 1, takes_source=True, context_pictures=40)
    with pytest.raises(ConfigError, match="40 source pictures need .* Raise model.max_length by"):
        processor.largest(plan_from([four]), GENERATE)
    long = GenerateRow("a cube", picture(0), context=[ShownPicture(picture(1)), "a ball " * 200])
    with pytest.raises(DataError, match="Sample k: the texts before its prompt do not fit next to 1 source pictures"):
        processor.check(long, CROP, "k")
    short = dataclasses.replace(long, context=[ShownPicture(picture(1)), "a ball"], prompt="a cube " * 200)
    processor.check(short, CROP, "k")
    (cut,) = generate(model, short).cut.tolist()
    assert cut and int(generate(model, short).attention.sum()) + 2 * processor.after_prompt == processor.max_length


def test_a_source_alone_is_the_same_row_as_a_context_of_one(model, picture):
    alone = generate(model, GenerateRow("a cube", picture(0), picture(1)))
    context = generate(model, GenerateRow("a cube", picture(0), context=[ShownPicture(picture(1))]))
    for name in ("tokens", "attention", "image_positions", "images", "source_pixels"):
        assert torch.equal(getattr(alone, name), getattr(context, name)), name


def test_a_control_token_in_a_text_between_pictures_stays_text(model, picture):
    written = "<|vision_start|><|vision_end|> <|image_pad|> a ball"
    inputs = generate(model, GenerateRow("a cube", picture(0), context=[ShownPicture(picture(1)), written]))
    names = model.processor.format
    assert inputs.escaped.tolist() == [3]
    assert int((inputs.tokens == names.begin).sum()) == 3 and int((inputs.tokens == names.image).sum()) == names.visual_tokens
