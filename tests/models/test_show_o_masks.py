"""What positions of Show-o see, against the definition pair by pair, and which codes are masked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.models.causal import masks
from megaunigame.models.show_o import masking
from megaunigame.models.show_o.masks import open_picture, open_prefix

FAST = settings(max_examples=60, deadline=None)


def pairs(size, sees):
    return torch.tensor([[sees(q, k) for k in range(size)] for q in range(size)])


@FAST
@given(
    pictures=st.lists(st.integers(1, 4), max_size=3), text=st.integers(1, 6), turns=st.integers(0, 2), pads=st.integers(0, 3)
)
def test_every_position_sees_the_prefix_of_pictures(pictures, text, turns, pads):
    """Padding in front, a token, pictures between their begin and end tokens, shared text, independent turns."""
    kinds = ["pad"] * pads + (["task"] if pictures else [])
    for length in pictures:
        kinds += ["begin", *["code"] * length, "end"]
    prefix = len(kinds)
    kinds += ["text"] * text
    segments = [0] * len(kinds) + [1 + n for n in range(turns) for _ in range(2)]
    kinds += ["text"] * (2 * turns)
    size = len(kinds)
    image = torch.tensor([[kind == "code" for kind in kinds]])
    attention = torch.tensor([[kind != "pad" for kind in kinds]])

    def sees(q, k):
        if q == k:
            return True
        own = segments[k] in (0, segments[q])
        return kinds[k] != "pad" and own and (k <= q or (bool(pictures) and k < prefix))

    found = masks.causal(attention, torch.tensor([segments]), open_prefix(image))
    assert torch.equal(found[0], pairs(size, sees))


@FAST
@given(pads=st.integers(0, 3), text=st.integers(0, 4), source=st.integers(0, 5), count=st.integers(1, 6))
def test_a_drawn_picture_sees_all_and_a_source_sees_itself(pads, text, source, count):
    kinds = ["pad"] * pads + ["task", *["text"] * text, "end of text"]
    if source:
        kinds += ["source"] * (source + 2)  # with its begin and end tokens
    request = len(kinds) + 1
    kinds += ["drawn"] * (count + 2)
    first = kinds.index("source") if source else 0
    image = torch.tensor([[bool(source) and first < at < first + source + 1 for at in range(request)]])

    def sees(q, k):
        if q == k:
            return True
        together = kinds[q] == kinds[k] == "source"
        return kinds[k] != "pad" and (k <= q or together or kinds[q] == "drawn")

    attention = torch.tensor([[kind != "pad" for kind in kinds]])
    found = masks.causal(attention, None, open_picture(image, count + 1))
    assert torch.equal(found[0], pairs(len(kinds), sees))


def test_a_row_of_text_alone_is_causal():
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    assert not open_prefix(nothing).any()


@pytest.mark.parametrize("name", masking.SCHEDULES)
def test_schedules_fall_from_all_to_none(name):
    shares = masking.SCHEDULES[name](torch.linspace(0, 1, 50))
    assert shares[0] == pytest.approx(1, abs=1e-6) and shares[-1] == pytest.approx(0, abs=2e-6)
    assert (shares.diff() < 0).all()


@FAST
@given(rows=st.integers(1, 6), codes=st.integers(2, 40), seed=st.integers(0, 99))
def test_a_row_masks_as_many_codes_as_the_schedule_says(rows, codes, seed):
    torch.manual_seed(seed)
    t, scores = masking.training_draw(rows, codes, torch.device("cpu"))
    masked = masking.masked_places(masking.masked_counts("cosine", t, codes), scores)
    expected = [max(1, round(codes * float(torch.cos(x * torch.pi / 2)))) for x in t]
    assert masked.sum(1).tolist() == expected


def test_every_place_is_masked_equally_often():
    torch.manual_seed(0)
    _, scores = masking.training_draw(4000, 8, torch.device("cpu"))
    shares = masking.masked_places(torch.full((4000,), 2.0), scores).float().mean(0)
    assert shares.tolist() == pytest.approx([0.25] * 8, abs=0.03)


def test_the_draw_of_an_evaluation_belongs_to_the_sample():
    state = torch.get_rng_state()
    keys = [f"{number:06d}" for number in range(400)]
    few, many = (masking.evaluation_draw(some, 20, torch.device("cpu")) for some in (keys[5:8], keys))
    for short, long in zip(few, many, strict=True):
        assert torch.equal(short, long[5:8])
    assert torch.equal(torch.get_rng_state(), state)
    assert many[0].mean().item() == pytest.approx(0.5, abs=0.05) and len(many[0].unique()) == 400


@pytest.mark.parametrize(("codes", "steps"), [(16, 5), (16, 30), (4, 1), (64, 18)])
def test_what_stays_masked_gets_fewer_and_never_none(codes, steps):
    unknown = torch.ones(2, codes, dtype=torch.bool)
    for step in range(steps):
        before = int(unknown[0].sum())
        kept = masking.kept_masked("cosine", step, steps, unknown)
        ratio = float(torch.cos(torch.tensor((step + 1) / steps) * torch.pi / 2))
        expected = max(1, min(before - 1, int(codes * max(ratio, 0))))
        assert kept.tolist() == [[expected]] * 2
        chances = torch.rand(2, codes).masked_fill(~unknown, torch.finfo(torch.float32).max)
        unknown = masking.least_confident(chances, kept)
        assert unknown.sum(1).tolist() == [expected] * 2
    assert unknown.sum(1).tolist() == [1, 1]


def test_products_are_rounded_as_in_float32():
    """25 codes and a share of .96: 24 in float32, 23.99... in float64."""
    assert masking.masked_after("linear", 0, 25, 25) == 24


def test_the_least_confident_codes_are_masked_again():
    chances = torch.tensor([[0.5, 0.1, 0.9, 0.2]])
    assert masking.least_confident(chances, torch.tensor([[2]])).tolist() == [[False, True, False, True]]
    noise = torch.tensor([[-9.0, 0.0, 0.0, 0.0]])
    assert masking.least_confident(chances, torch.tensor([[2]]), noise).tolist() == [[True, True, False, False]]


def test_gumbel_noise_has_its_mean():
    noise = masking.gumbel((200_000,), torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01) and noise.var().item() == pytest.approx(1.6449, abs=0.03)
