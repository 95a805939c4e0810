"""Tapped attention against the maps that eager attention returns, on the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from megaunigame.attention import taps as attention_taps
from megaunigame.attention.queries import Queries, answers, drawn_tokens
from megaunigame.attention.taps import Tap
from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.errors import ModelError
from megaunigame.models.causal import masks
from megaunigame.step.inputs import IGNORE, Taps
from megaunigame.step.labels import label_positions

ROWS, LENGTH, LAYERS, HEADS = 3, 24, 3, 4


def llama(attention: str, key_value_heads: int = 2, checkpointing: bool = False, layers: int = LAYERS) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=key_value_heads, attn_implementation=attention, use_cache=False,
    )  # fmt: skip
    model = LlamaModel(config)
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.dim() > 1 else 1  # attention far from uniform
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    return model


def embeds(seed: int = 1) -> torch.Tensor:
    return torch.randn(ROWS, LENGTH, 32, generator=torch.Generator().manual_seed(seed))


def sets(left: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padding mask, and queries, keys and first tokens: another number of each in every row."""
    attention = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    padding = slice(0, 5) if left else slice(LENGTH - 5, LENGTH)
    attention[1, padding] = False
    queries, keys = torch.zeros_like(attention), torch.zeros_like(attention)
    keys[0, 2:9], keys[1, 7:11], keys[2, 1:2] = True, True, True
    queries[0, 10:24], queries[1, 12:19], queries[2, [5, 9, 20, 21]] = True, True, True
    return attention, queries, keys, attention & (attention.cumsum(1) == 1)


def chosen(queries: torch.Tensor, most: int = 0) -> Queries:
    return answers(label_positions(torch.where(queries, 1, IGNORE)), most, LENGTH)


def tap_of(layers: Sequence[int] = range(LAYERS), most: int = 0) -> Tap:
    _, queries, keys, first = sets()
    return Tap(Taps(tuple(layers)), chosen(queries, most), keys, first)


def causal(attention: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
    return masks.additive(masks.causal(attention, segments), torch.float32)


def maps(model: LlamaModel, mask: torch.Tensor, given: torch.Tensor) -> list[torch.Tensor]:
    return model(inputs_embeds=given, attention_mask=mask, output_attentions=True).attentions


def by_maps(attentions, queries, keys) -> torch.Tensor:
    """(L, B): the definition, map by map and row by row."""
    return torch.stack([
        torch.stack([a[b][:, queries[b]][:, :, keys[b]].sum(-1).mean() for b in range(ROWS)]) for a in attentions
    ])  # fmt: skip


def tapped(model: LlamaModel, mask: torch.Tensor | None, given: torch.Tensor, tap: Tap) -> torch.Tensor:
    attention_taps.install(model)
    return model(inputs_embeds=given, attention_mask=mask, tap=tap).last_hidden_state


ALL = Taps(layers=tuple(range(LAYERS)))


@pytest.mark.parametrize("chunk", [1, 700, 2**22])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("base", ["sdpa", "eager"])
def test_shares_and_gradients_are_those_of_the_maps(monkeypatch, base, padding, checkpointing, key_value_heads, chunk):
    monkeypatch.setattr(attention_taps, "CHUNK_ELEMENTS", chunk)
    attention, queries, keys, first = sets(left=padding == "left")
    mask = causal(attention)
    reference = llama("eager", key_value_heads)
    theirs_input, ours_input = (embeds().requires_grad_() for _ in range(2))
    attentions = maps(reference, mask, theirs_input)
    expected, expected_first = by_maps(attentions, queries, keys), by_maps(attentions, queries, first)
    weights = torch.randn(LAYERS, ROWS, generator=torch.Generator().manual_seed(2))
    (weights * expected).sum().backward()

    model = llama(base, key_value_heads, checkpointing)
    tap = Tap(ALL, chosen(queries), keys, first)
    hidden = tapped(model, mask if padding == "left" else None, ours_input, tap)
    shares = tap.shares()
    (hidden.sum() * 0 + (weights * shares.keys).sum()).backward()

    torch.testing.assert_close(shares.keys, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(shares.first, expected_first, atol=1e-6, rtol=0)
    assert 0.05 < expected.min() and expected.max() < 0.95
    pairs = [(theirs_input.grad, ours_input.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(reference.parameters(), model.parameters(), strict=True) if a.grad is not None]
    for theirs, ours in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert any(theirs.abs().max() > 1e-2 for theirs, _ in pairs)


def test_segments_are_seen_through_the_mask():
    attention, queries, keys, first = sets()
    segments = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    segments[:, 12:18], segments[:, 18:] = 1, 2
    mask = causal(attention, segments)
    with torch.no_grad():
        expected = by_maps(maps(llama("eager"), mask, embeds()), queries, keys)
        plain = by_maps(maps(llama("eager"), causal(attention), embeds()), queries, keys)
        tap = Tap(ALL, chosen(queries), keys, first)
        tapped(llama("sdpa"), mask, embeds(), tap)
    torch.testing.assert_close(tap.shares().keys, expected, atol=1e-6, rtol=0)
    assert (expected - plain).abs().max() > 1e-2


def test_a_mask_of_true_and_false_is_as_good_as_an_additive_one():
    attention, queries, keys, first = sets(left=True)
    seen = masks.causal(attention, None).unsqueeze(1)
    with torch.no_grad():
        expected = by_maps(maps(llama("eager"), causal(attention), embeds()), queries, keys)
        tap = Tap(ALL, chosen(queries), keys, first)
        tapped(llama("sdpa"), seen, embeds(), tap)
    torch.testing.assert_close(tap.shares().keys, expected, atol=1e-6, rtol=0)


def test_a_padding_mask_of_two_dimensions_as_flash_attention_takes_it(monkeypatch):
    """A kernel that takes (B, S) masks stands in for flash attention, which needs a GPU."""
    attention, queries, keys, first = sets(left=True)
    names = []

    def flash(module, query, key, value, attention_mask, scaling, **options):
        names.append(module.config._attn_implementation)
        additive = masks.additive(masks.causal(attention_mask.bool(), None), query.dtype)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, additive, scaling=scaling, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_like", flash)
    monkeypatch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_like", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"]
    )
    model = llama("sdpa")
    model.config._attn_implementation = "flash_like"
    tap = Tap(ALL, chosen(queries), keys, first)
    with torch.no_grad():
        tapped(model, attention, embeds(), tap)
        expected = by_maps(maps(llama("eager"), causal(attention), embeds()), queries, keys)
    torch.testing.assert_close(tap.shares().keys, expected, atol=1e-6, rtol=0)
    assert names == ["flash_like"] * LAYERS  # the kernel finds the name it is looked up by


def test_an_untapped_pass_is_the_same_bit_by_bit():
    plain, model = llama("sdpa"), llama("sdpa")
    attention_taps.install(model)
    attention_taps.install(model)  # twice is once
    with torch.no_grad():
        assert torch.equal(plain(inputs_embeds=embeds())[0], model(inputs_embeds=embeds())[0])
        assert torch.equal(plain(inputs_embeds=embeds())[0], tapped(model, None, embeds(), tap_of()))


def test_chosen_layers_alone_are_measured_in_the_order_asked_for():
    everything, some = tap_of(), tap_of(layers=(2, 0))
    model = llama("sdpa")
    with torch.no_grad():
        tapped(model, None, embeds(), everything)
        tapped(model, None, embeds(), some)
    assert sorted(some.found) == [0, 2]
    assert torch.equal(some.shares().keys, everything.shares().keys[[2, 0]])


def test_a_random_part_of_the_queries_is_unbiased():
    _, queries, _, _ = sets()
    model, exact = llama("sdpa"), tap_of()
    with torch.no_grad():
        tapped(model, None, embeds(), exact)
        torch.manual_seed(0)
        drawn = []
        for _ in range(300):
            tap = tap_of(most=3)
            assert tap.queries.positions.shape == (ROWS, 3)
            assert (queries.gather(1, tap.queries.positions).sum(1) == queries.sum(1).clamp_max(3)).all()
            tapped(model, None, embeds(), tap)
            drawn.append(tap.shares().keys)
    drawn = torch.stack(drawn)
    error = (drawn.mean(0) - exact.shares().keys).abs()
    assert (error < 4 * drawn.std(0) / 300**0.5 + 1e-6).all() and drawn.std(0)[:, 0].min() > 0.01


@pytest.mark.parametrize("most", [0, 4])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_drawn_tokens_are_at_the_same_places_in_every_row(monkeypatch, chunk, most):
    """Their places are known on the host, which bounds the keys that each query sees; answers are taken to see all."""
    monkeypatch.setattr(attention_taps, "CHUNK_ELEMENTS", chunk)
    attention, _, keys, first = sets()
    places = [11, 12, 13, 15, 16, 18]
    drawn = drawn_tokens(places, ROWS, most, torch.device("cpu"))
    queries = torch.zeros_like(attention).scatter(1, drawn.positions, True)
    assert queries.sum(1).tolist() == [most or len(places)] * ROWS and not queries[:, 14].any()
    assert drawn.counted.all() and (drawn.positions.diff() > 0).all()
    for at, (clear, seen) in zip(drawn.positions.T + 1, drawn.reach, strict=True):
        assert clear == at.min() and seen == at.max()
    theirs, ours = Tap(ALL, chosen(queries), keys, first), Tap(ALL, drawn, keys, first)
    gradients = []
    for tap in (theirs, ours):
        given = embeds().requires_grad_()
        tapped(llama("sdpa"), None, given, tap)
        tap.shares().keys.square().sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(ours.shares().keys, theirs.shares().keys, atol=1e-6, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_rows_without_queries_or_keys_are_finite_and_without_gradient():
    _, queries, keys, first = sets()
    queries[0], keys[1] = False, False
    given = embeds().requires_grad_()
    tap = Tap(ALL, chosen(queries), keys, first)
    tapped(llama("sdpa"), None, given, tap)
    shares = tap.shares().keys
    assert shares[:, :2].abs().max() == 0
    shares.sum().backward()
    assert given.grad[:2].abs().max() == 0 and given.grad[2].abs().max() > 0


def test_bfloat16_stays_near():
    exact, near = tap_of(), tap_of()
    with torch.no_grad():
        tapped(llama("sdpa"), None, embeds() / 8, exact)
        tapped(llama("sdpa").bfloat16(), None, (embeds() / 8).bfloat16(), near)
    assert near.shares().keys.dtype == torch.float32
    torch.testing.assert_close(near.shares().keys, exact.shares().keys, atol=0.05, rtol=0)


def test_a_model_that_cannot_be_tapped_says_so(monkeypatch):
    monkeypatch.setattr(LlamaModel, "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ModelError, match=r"attention of LlamaModel .* cannot be tapped.*model.attention=sdpa"):
        attention_taps.install(llama("sdpa"))


def test_a_layer_that_never_attended_is_named():
    tap = tap_of(layers=(0, 7))
    with torch.no_grad():
        tapped(llama("sdpa"), None, embeds(), tap)
    with pytest.raises(ModelError, match=r"layer 7 could not be tapped; layers \[0\] were"):
        tap.shares()


def test_what_is_computed_again_is_let_go_layer_by_layer():
    """With gradient checkpointing the peak of a measured backward does not grow with the layers that are measured."""

    def peak(layers: int, measured: bool) -> int:
        model = llama("sdpa", checkpointing=True, layers=layers)
        model.requires_grad_(False)  # no weight gradients, which would grow with the layers too
        attention_taps.install(model)
        tap, given = tap_of(range(layers)), embeds().requires_grad_()
        with LiveBytes() as live:
            hidden = model(inputs_embeds=given, attention_mask=None, **({"tap": tap} if measured else {})).last_hidden_state
            loss = hidden.square().sum() + (tap.shares().keys.sum() if measured else 0)
            del hidden
            kept = live.current
            live.reset_peak()
            loss.backward()
        return live.peak - kept

    few, many = (peak(layers, True) - peak(layers, False) for layers in (2, 8))
    of_layer = 4 * ROWS * LENGTH * 8 * (HEADS + 2)  # queries and keys in float32
    assert many - few < of_layer
