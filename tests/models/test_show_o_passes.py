"""The two passes of Show-o by hand, on transformers' PhiForCausalLM, and its sampling step by step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import PhiForCausalLM

from megaunigame.models.causal import masks
from megaunigame.step.inputs import Taps
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, counted_calls, generate, understand

FAMILY = "show_o"


@pytest.fixture
def model(tiny):
    """Biases and norms that are not at their start values."""
    model = tiny.load()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def plain(model):
    """The same weights in transformers' class."""
    language = PhiForCausalLM(model.config.get_text_config()).eval()
    language.load_state_dict({name.removeprefix("showo."): value for name, value in model.state_dict().items()})
    return language


def whole_row(model, inputs, codes, masked, row):
    """(tokens (1, S), visible (1, S, S)) of one generate row without padding, by the definition of the layout."""
    prompt = inputs.tokens[row].clone()
    if inputs.image_valid is not None and inputs.image_valid[row].any():
        prompt[inputs.image_positions[row]] = model.vision_tokenizer.encode(inputs.images[row]).flatten() + model.grid.first
    prompt, image = (x[inputs.attention[row]] for x in (prompt, inputs.image_positions[row]))
    picture = torch.where(masked[row], model.config.vocab_size - 1, codes[row] + model.grid.first)
    tokens = torch.cat([prompt, picture, torch.tensor([model.processor.format.end])])
    visible = torch.ones(len(tokens), len(tokens)).tril().bool()
    visible[len(prompt) - 1 :] = True
    if image.any():
        at = image.nonzero().squeeze(1)
        block = slice(int(at[0]) - 1, int(at[-1]) + 2)
        visible[block, block] = True
    return tokens[None], visible[None]


def read(plain, tokens, visible):
    return plain(input_ids=tokens, attention_mask=masks.additive(visible, torch.float32)).logits[0]


def test_the_loss_falls_on_masked_codes_at_their_own_places(model, plain, picture):
    rows = GenerateRow("a cube", picture(0)), GenerateRow("its small depth", picture(1), picture(2)), None
    inputs = generate(model, *rows)
    codes = model.encode_target(inputs.targets)
    masked = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.3], [0.8], [0.5]])
    with torch.no_grad():
        output = model.predict_masked(inputs, codes, masked, predict=True)
        for row in range(2):
            logits = read(plain, *whole_row(model, inputs, codes, masked, row))[-17:-1]
            losses = F.cross_entropy(logits, codes[row] + model.grid.first, reduction="none")
            assert output.loss_sum[row].item() == pytest.approx(16 * losses[masked[row]].mean().item(), rel=1e-5)
            assert torch.equal(output.predictions[row], logits[:, model.grid.ids].argmax(-1))
    assert output.loss_sum[2] == 0 and output.hidden.shape == (3, 16, 64)
    assert torch.equal(output.target, codes) and masked.sum(1).tolist()[0] != masked.sum(1).tolist()[1]


def test_padding_and_neighbors_change_no_row(model, picture):
    rows = [GenerateRow("a cube", picture(0)), GenerateRow("a small green cone behind the ball", picture(1), picture(2))]
    inputs, masked = generate(model, *rows), torch.rand(2, 16) < 0.5
    masked[:, 0] = True
    codes = model.encode_target(inputs.targets)
    with torch.no_grad():
        both = model.predict_masked(inputs, codes, masked, predict=False)
        for row in range(2):
            alone = generate(model, rows[row])
            single = model.predict_masked(alone, codes[row : row + 1], masked[row : row + 1], predict=False)
            torch.testing.assert_close(single.hidden[0], both.hidden[row], rtol=1e-4, atol=1e-4)
            assert single.loss_sum[0].item() == pytest.approx(both.loss_sum[row].item(), rel=1e-5)


def test_training_draws_from_the_default_generator_and_evaluation_draws_the_same(model, picture):
    inputs = generate(model, GenerateRow("a cube", picture(0)))

    def loss(seed):
        torch.manual_seed(seed)
        return model(inputs).loss_sum.item()

    assert loss(0) == loss(1)
    model.train()
    assert loss(0) == loss(0) != loss(1)


def test_a_picture_that_is_redrawn_is_masked_whole(model, picture):
    """Aside: in training mode, without a gradient. A state of a code that is read predicts nothing."""
    inputs = generate(model, GenerateRow("a cube", picture(0), picture(1)))
    model.train()
    codes = model.encode_target(inputs.targets)
    with torch.no_grad():
        redrawn, whole = model(inputs), model.predict_masked(inputs, codes, torch.ones_like(codes) > 0, predict=False)
        part = model.predict_masked(inputs, codes, torch.arange(codes.shape[1])[None] < 5, predict=False)
    assert torch.equal(redrawn.hidden, whole.hidden) and not torch.allclose(redrawn.hidden, part.hidden)


def test_a_question_sees_its_pictures_and_text_is_causal(model, plain, picture):
    inputs = understand(model, UnderstandRow([picture(0), picture(1)], TURNS[:2]), UnderstandRow([], TURNS))
    for row in range(2):
        tokens = inputs.tokens[row].clone()
        tokens[inputs.image_positions[row]] = (
            (model.vision_tokenizer.encode(inputs.images[0]).flatten() + model.grid.first)
            if row == 0
            else tokens[inputs.image_positions[row]]
        )
        tokens, labels = (x[inputs.attention[row]] for x in (tokens, inputs.labels[row]))
        visible = torch.ones(len(tokens), len(tokens)).tril().bool()
        if row == 0:
            visible[:, : int((tokens == model.processor.format.end).nonzero()[-1]) + 1] = True
        with torch.no_grad():
            logits = read(plain, tokens[None], visible[None])
            expected = F.cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
            assert model(inputs).loss_sum[row].item() == pytest.approx(expected, rel=1e-5)


def test_shares_of_attention_are_those_of_the_maps(tiny, model, picture):
    """Q: all places of the picture; K: the text before it, without a source."""
    eager = tiny.load(attention="eager")
    eager.load_state_dict(model.state_dict())
    inputs = generate(eager, GenerateRow("its depth", picture(0), picture(1)), GenerateRow("a small cube", picture(2)))
    codes, masked = eager.encode_target(inputs.targets), torch.ones(2, 16, dtype=torch.bool)
    model.install_taps()
    with torch.no_grad():
        tapped = dataclasses.replace(inputs, taps=Taps(layers=(0, 1)))
        found = model.predict_masked(tapped, codes, masked, predict=False).attention.keys
        for row in range(2):
            tokens, visible = whole_row(eager, inputs, codes, masked, row)
            mask = masks.additive(visible, torch.float32)
            maps = eager.language_model(input_ids=tokens, attention_mask=mask, output_attentions=True).attentions
            text = (inputs.attention[row] & ~inputs.image_positions[row])[inputs.attention[row]]
            for layer in range(2):
                seen = maps[layer][0][:, -17:-1, : len(text)][:, :, text]
                assert found[layer, row].item() == pytest.approx(seen.sum(-1).mean().item(), abs=1e-6)


def guided_logits(model, plain, inputs, row, codes, unknown, guidance):
    """(N, V) logits of the codes of one row, read without padding."""
    tokens, visible = whole_row(model, inputs, codes, unknown, row)
    empty = torch.tensor(model.processor.unconditional_tokens())
    without = torch.cat([empty, tokens[0, -17:]])
    plainly = torch.ones(len(without), len(without)).tril().bool()
    plainly[len(empty) - 1 :] = True
    with torch.no_grad():
        logits = read(plain, tokens, visible)[-17:-1, model.grid.ids]
        u = read(plain, without[None], plainly[None])[-17:-1, model.grid.ids]
    return u + guidance * (logits - u)


def official_sampling(model, plain, inputs, guidance, temperature, generator):
    """(2, 16) codes, as the official `t2i_generate` draws them in 5 steps, written without our functions.

    It draws codes with torch.multinomial. Here a code takes one uniform number as ours do, all codes of a row before the next
    row; then the noise takes its own.
    """
    codes, unknown = torch.zeros(2, 16, dtype=torch.long), torch.ones(2, 16, dtype=torch.bool)
    noise = temperature
    for step in range(1, 6):
        confidence = torch.full((2, 16), math.inf, dtype=torch.double)
        for row in range(2):
            logits = guided_logits(model, plain, inputs, row, codes, unknown, guidance).double()
            if temperature == 0:
                drawn = logits.argmax(-1)
            else:
                below = (logits / temperature).softmax(-1).cumsum(-1)
                drawn = (below <= torch.rand(16, 1, generator=generator)).sum(-1)
            codes[row] = torch.where(unknown[row], drawn, codes[row])
            for place in range(16):
                if unknown[row, place]:
                    confidence[row, place] = logits[place].log_softmax(-1)[codes[row, place]]
        noise *= 1 - step / 5  # of the noise before, not of the first
        uniform = torch.rand(2, 16, generator=generator).double()
        confidence += noise * -torch.log(-torch.log(uniform))
        for row in range(2):
            left = max(1, min(int(unknown[row].sum()) - 1, math.floor(16 * math.cos(step / 5 * math.pi / 2))))
            least = confidence[row].argsort()[:left]
            unknown[row] = False
            unknown[row, least] = True
    return codes


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 20.0])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_is_parallel_decoding(model, plain, picture, guidance, temperature):
    """Step by step without padding and with transformers' class, with the same random numbers. At 20, known codes would be
    masked again if they were not certain."""
    inputs = model.processor.generate_prompts(["a small green cone behind", "a cube"], [None, picture(0)])
    calls = counted_calls(model.language_model)
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    found = model.sample_codes(inputs, guidance=guidance, temperature=temperature, generator=ours)
    assert len(calls) == model.calls_per_sample == 5
    expected = official_sampling(model, plain, inputs, guidance, temperature, theirs)
    assert found.tolist() == expected.tolist()


def test_noise_changes_what_is_drawn(model):
    inputs = model.processor.generate_prompts(["a cube"])
    drawn = [
        model.sample_codes(inputs, guidance=1.0, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    ]
    assert not torch.equal(*drawn)
