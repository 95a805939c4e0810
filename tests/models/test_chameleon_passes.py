"""The two passes of Chameleon: codes by the table of the vocabulary, losses next to transformers' masked ones."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import ChameleonForConditionalGeneration

from megaunigame.errors import ModelError
from megaunigame.models.chameleon.code_names import code_token, codes_by_place, ids_of_codes
from megaunigame.step.inputs import IGNORE
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, copied, generate, understand, with_replaced
from tests.tiny import write_tiny

FAMILY = "chameleon"


@pytest.fixture
def theirs(tiny):
    return ChameleonForConditionalGeneration.from_pretrained(tiny.path).eval()


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    """With the layers of the 30B, and heads whose norms differ."""
    tiny = write_tiny(FAMILY, tmp_path_factory.mktemp("swin"), ["what is it ?"], swin_norm=True)
    return tiny.load(), ChameleonForConditionalGeneration.from_pretrained(tiny.path).eval()


def with_codes(model, theirs, inputs, row=0):
    """Tokens of a row without padding, the codes of its pictures as transformers makes them."""
    tokens = inputs.tokens[row].clone()
    if inputs.image_positions[row].any():
        seen = inputs.images[row][inputs.image_valid[row]]
        tokens[inputs.image_positions[row]] = theirs.get_image_tokens(seen).flatten().long()
    return tokens[inputs.attention[row]]


def test_codes_are_named_by_their_digits():
    assert [code_token(code) for code in (0, 9, 10, 8191)] == ["IMGIMGAZ", "IMGIMGJZ", "IMGIMGBAZ", "IMGIMGIBJBZ"]
    ids = ids_of_codes({"IMGIMGAZ": 7, "x": 3, "IMGIMGBZ": 5, "IMGIMGCZ": 6}, 3, "folder")
    assert ids == [7, 5, 6] and codes_by_place(ids) == [1, 2, 0]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"IMGIMGAZ": 4, "IMGIMGCZ": 5}, "folder has no token IMGIMGBZ; .*has 3 codes, IMGIMGAZ to IMGIMGCZ"),
        ({f"IMGIMG{c}Z": n for n, c in enumerate("ABCD")}, "folder has a token IMGIMGDZ; .*has 3 codes"),
        ({"IMGIMGAZ": 4, "IMGIMGBZ": 6, "IMGIMGCZ": 7}, "3 codes .* at ids from 4 to 7.*one range, in any order"),
    ],
)
def test_codes_that_are_not_one_range_of_tokens_are_refused(vocabulary, message):
    with pytest.raises(ModelError, match=message):
        ids_of_codes(vocabulary, 3, "folder")


def test_codes_are_the_tokens_that_the_vocabulary_names(model, theirs, picture):
    """Their order is not that of the codes."""
    images = understand(model, UnderstandRow([picture(0), picture(1)], TURNS)).images[0]
    with torch.no_grad():
        expected = theirs.get_image_tokens(images)
        codes = theirs.model.vqmodel.encode(images).image_tokens.view(2, -1)
        places = model.vision_tokenizer.encode(images).flatten(1)
    assert torch.equal(places + model.grid.first, expected) and not torch.equal(codes, places)
    table = torch.tensor(model.processor.format.codes)
    assert torch.equal(table[places], codes)
    names = model.processor.tokenizer.convert_ids_to_tokens((places[0] + model.grid.first).tolist())
    assert names == [code_token(code) for code in codes[0].tolist()]
    rows = theirs.model.vqmodel.quantize.embedding.weight[codes.view(2, 3, 3)].permute(0, 3, 1, 2)
    assert torch.equal(model.vision_tokenizer.embed(places.view(2, 3, 3)), rows)


def test_questions_have_the_logits_of_transformers(model, theirs, picture):
    for pictures in ([], [picture(0)], [picture(0), picture(1)]):
        inputs = model.processor.prompt_inputs([pictures], ["what ?"])
        with torch.no_grad():
            logits = theirs(input_ids=with_codes(model, theirs, inputs)[None]).logits[0]
            ours = model.lm_head(model._read(model.embed(inputs), inputs.attention))[inputs.attention]
        assert (logits[:, model.grid.ids] == torch.finfo(torch.float32).min).all()
        others = torch.ones(ours.shape[1], dtype=torch.bool)
        others[model.grid.ids] = False
        torch.testing.assert_close(ours[:, others], logits[:, others], rtol=1e-4, atol=1e-4)


def test_layers_that_normalize_what_they_add_are_those_of_transformers(swin, picture):
    model, theirs = swin
    inputs = generate(model, GenerateRow("its depth", picture(0), picture(1)))
    tokens = with_codes(model, theirs, inputs)
    with torch.no_grad():
        torch.manual_seed(0)
        for ours, other in zip(model.layers(), theirs.model.layers, strict=True):
            for name in ("q_norm", "k_norm"):
                norm = getattr(ours.self_attn, name)
                norm.weight.copy_(torch.rand_like(norm.weight))
                norm.bias.copy_(torch.rand_like(norm.bias))
                getattr(other.self_attn, name).load_state_dict(norm.state_dict())
        states = theirs.model(input_ids=tokens[None]).last_hidden_state[0]
        ours = model._read(model.embed(inputs), inputs.attention)[inputs.attention]
    torch.testing.assert_close(ours, states, rtol=1e-4, atol=1e-5)


def test_the_loss_on_codes_is_finite_and_that_of_plain_logits(model, theirs, picture):
    """Over the whole vocabulary; transformers' own loss on codes is not usable."""
    inputs = generate(model, GenerateRow("a cube", picture(0)), GenerateRow("its depth", picture(1), picture(2)), None)
    with torch.no_grad():
        output = model(inputs, predict=True)
        assert output.hidden.shape == (3, 16, 64) and output.loss_sum[2] == 0
        assert torch.equal(output.target + model.grid.first, theirs.get_image_tokens(inputs.targets))
        for row in range(2):
            prompt = with_codes(model, theirs, inputs, row)
            tokens = torch.cat([prompt, output.target[row] + model.grid.first])
            states = theirs.model(input_ids=tokens[None]).last_hidden_state[0]
            logits = F.linear(states, theirs.lm_head.weight)[len(prompt) - 1 : -1]
            expected = F.cross_entropy(logits, tokens[len(prompt) :], reduction="sum")
            assert torch.isfinite(expected) and output.loss_sum[row].item() == pytest.approx(expected.item(), rel=1e-5)
            assert torch.equal(output.predictions[row], logits[:, model.grid.ids].argmax(-1))
            labels = tokens.clone()
            labels[: len(prompt)] = IGNORE
            assert theirs(input_ids=tokens[None], labels=labels[None]).loss > 1e30


def test_an_answer_has_the_loss_of_transformers_without_its_mask(model, theirs, picture):
    inputs = understand(model, UnderstandRow([picture(0), picture(1)], TURNS))
    tokens, labels = with_codes(model, theirs, inputs), inputs.labels[0][inputs.attention[0]]
    with torch.no_grad():
        logits = theirs.lm_head(theirs.model(input_ids=tokens[None]).last_hidden_state[0])
        expected = F.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE, reduction="sum")
        assert model(inputs).loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_dropped_condition_is_the_first_token_and_the_begin_of_the_image(model):
    names = model.processor.tokenizer.convert_ids_to_tokens(model.processor.unconditional_tokens())
    assert names == ["<s>", "<racm3:break>"]


def test_names_of_codes_in_texts_are_text_where_the_tokenizer_does_not_mark_them(tiny, tmp_path):
    file = copied(tiny.path, tmp_path) / "tokenizer.json"
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        token["special"] = not token["content"].startswith("IMGIMG")
    file.write_text(json.dumps(content))
    processor = tiny._replace(path=tmp_path).processor()
    tokens, escaped = processor.format.plain.encode("is IMGIMGBBZ a code ?")
    ids = processor.format.grid.ids
    assert escaped == 1 and not any(ids.start <= token < ids.stop for token in tokens)


def test_a_configuration_of_another_tokenizer_is_refused(tiny, tmp_path):
    ids = tiny.tokenizer.convert_tokens_to_ids(["IMGIMGAZ", "IMGIMGBZ"])
    folder = with_replaced(tiny.path, tmp_path, b"", b"")
    raw = json.loads((folder / "config.json").read_text())
    raw["vocabulary_map"] |= {"IMGIMGAZ": ids[1], "IMGIMGBZ": ids[0]}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=rf"IMGIMGAZ at {ids[1]}, and its tokenizer at {ids[0]} .2 tokens differ"):
        tiny._replace(path=folder).processor()
