"""Rows of every family as tokens and pixels: formats, what is cut, what is refused."""

from __future__ import annotations

import json
import pickle
from typing import NamedTuple

import pytest
import torch

from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.step.inputs import IGNORE
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import CODE_FAMILIES, LENGTH, PLAN, TURNS, generate, understand, with_replaced, words


class Format(NamedTuple):
    """What a family reads."""

    conversation: str
    """Two turns about two pictures."""
    answers: str
    request: str
    """With {} for what is asked for."""
    caption: str
    """How " a cube " stands there."""
    instruction: str
    """How "its depth" stands there, with a source."""
    unconditional: str
    """Without its padding."""
    system: dict[str, str]
    """System prompt -> the beginning of a text-only row."""
    special: str
    """A token it needs."""
    three_pictures: int
    """Tokens that they take."""
    after_prompt: int
    loss_positions: int = 16
    source_side: int = 12
    target_side: int = 16
    other_positions: int = 0
    """Positions of a source picture that are not among the tokens of its row."""


JANUS = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
OPENUNI = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
SHOW_O = "<|soi|>" + "<|lvg|>" * 9 + "<|eoi|>"
BAGEL = "<|vision_start|>" + "<|image_pad|>" * 9 + "<|vision_end|>"
EMU3_LINE = "<|visual token 000000|>" * 3 + "<|extra_200|>"
EMU3 = f"<|image start|>3*3<|image token|>{EMU3_LINE * 3}<|extra_201|><|image end|>"
EMU3_5 = "<|image start|>3*3<|image token|>" + "<|extra_200|>".join(["<|visual token 000000|>" * 3] * 3) + "<|image end|>"
HARMON = "<|image_pad|>" * 12
CHAMELEON = "<racm3:break>" + "IMGIMGAZ" * 9 + "<eoss>"
CHAT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
BLIP3O_NEXT = "<I0>" * 9
FORMATS = {
    "janus": Format(
        conversation=f"<s><|User|>: {JANUS}{JANUS}\nwhat is this ?\n\n<|Assistant|>: a red ball</s>"
        "<|User|>: how many ?\n\n<|Assistant|>: two</s>",
        answers=" a red ball</s> two</s>",
        request="<s><|User|>: {}\n\n<|Assistant|>:<begin_of_image>",
        caption=" a cube ",
        instruction=f"{JANUS}\nits depth",
        unconditional="<s><begin_of_image>",
        system={"": "<s><|User|>: what", "Be brief.": "<s>Be brief.\n\n<|User|>: what"},
        special="<end_of_image>",
        three_pictures=54,
        after_prompt=16,
        source_side=16,
    ),
    "openuni": Format(
        conversation=f"<|im_start|>user\n{OPENUNI}\n{OPENUNI}\nwhat is this ?<|im_end|>\n<|im_start|>assistant\na red ball"
        "<|im_end|>\n<|im_start|>user\nhow many ?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>",
        answers="a red ball<|im_end|>two<|im_end|>",
        request="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<img>",
        caption="Generate an image: a cube",
        instruction=f"{OPENUNI}\nits depth",
        unconditional="<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n<img>",
        system={"": "<|im_start|>user\nwhat", "Be brief.": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhat"},
        special="<IMG_CONTEXT>",
        three_pictures=20,
        loss_positions=4 * 8 * 8,
        after_prompt=6,
        source_side=16,
        target_side=32,
    ),
    "blip3o_next": Format(
        conversation=f"{CHAT}{BLIP3O_NEXT}{BLIP3O_NEXT}\nwhat is this ?<|im_end|>\n<|im_start|>assistant\na red ball"
        "<|im_end|>\n<|im_start|>user\nhow many ?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>",
        answers="a red ball<|im_end|>two<|im_end|>",
        request=f"{CHAT}{{}}<|im_end|>\n<|im_start|>assistant\n<im_start><S0>",
        caption="Please generate image based on the following caption: a cube",
        instruction=f"{BLIP3O_NEXT}\nits depth",
        unconditional=f"{CHAT}<|im_end|>\n<|im_start|>assistant\n<im_start><S0>",
        system={"": "<|im_start|>user\nwhat", "Be brief.": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhat"},
        special="<im_end>",
        three_pictures=27,
        loss_positions=9,
        after_prompt=9,
        target_side=32,
    ),
    "emu3": Format(
        conversation=f"<|extra_203|>You are a helpful assistant. USER: {EMU3}{EMU3}what is this ?. ASSISTANT: a red ball"
        "<|extra_204|>USER: how many ?. ASSISTANT: two<|extra_204|>",
        answers=" a red ball<|extra_204|> two<|extra_204|>",
        request="<|extra_203|>{}<|image start|>4*4<|image token|>",
        caption=" a cube ",
        instruction=f"{EMU3}its depth",
        unconditional="<|extra_203|><|image start|>4*4<|image token|>",
        system={"": "<|extra_203|>USER: what", "Be brief.": "<|extra_203|>Be brief. USER: what"},
        special="<|image token|>",
        three_pictures=57,
        after_prompt=19,
    ),
    "emu3_5": Format(
        conversation=f"<|extra_203|>You are a helpful assistant. USER: {EMU3_5}{EMU3_5}what is this ? ASSISTANT: <|extra_100|>"
        "a red ball<|extra_101|><|extra_204|>USER: how many ? ASSISTANT: <|extra_100|>two<|extra_101|><|extra_204|>",
        answers="a red ball<|extra_101|><|extra_204|>two<|extra_101|><|extra_204|>",
        request="<|extra_203|>You are a helpful assistant for {} ASSISTANT: <|extra_100|><|image start|>4*4<|image token|>",
        caption="t2i task. USER: a cube",
        instruction=f"x2i task. USER: {EMU3_5}its depth",
        unconditional=f"<|extra_203|>You are a helpful assistant. USER: {EMU3_5} ASSISTANT: <|extra_100|>"
        "<|image start|>4*4<|image token|>",
        system={"": "<|extra_203|>USER: what", "Be brief.": "<|extra_203|>Be brief. USER: what"},
        special="<|extra_100|>",
        three_pictures=52,
        after_prompt=19,
    ),
    "chameleon": Format(
        conversation=f"<s>{CHAMELEON}{CHAMELEON}what is this ?<reserved08706>a red ball</s>how many ?<reserved08706>two</s>",
        answers="a red ball</s>two</s>",
        request="<s>{}<reserved08706><racm3:break>",
        caption=" a cube ",
        instruction=f"{CHAMELEON}its depth",
        unconditional="<s><racm3:break>",
        system={"": "<s>what", "Be brief.": "<s>Be brief.\nwhat"},
        special="<reserved08706>",
        three_pictures=33,
        after_prompt=16,
    ),
    "show_o": Format(
        conversation=f"<|mmu|>{SHOW_O}{SHOW_O}<|endoftext|>USER: \nwhat is this ? ASSISTANT: a red ball<|endoftext|>"
        "USER: how many ? ASSISTANT: two<|endoftext|>",
        answers=" a red ball<|endoftext|> two<|endoftext|>",
        request="<|t2i|><|endoftext|>{}<|soi|>",
        caption=" a cube <|endoftext|>",
        instruction=f"its depth<|endoftext|>{SHOW_O}",
        unconditional="<|t2i|><|endoftext|><|endoftext|><|soi|>",
        system={"": "<|endoftext|>USER: what", "Be brief.": "<|endoftext|>Be brief. USER: what"},
        special="<|eoi|>",
        three_pictures=34,
        after_prompt=17,
    ),
    "harmon": Format(
        conversation=f"<|im_start|>user\n{HARMON}{HARMON}\nwhat is this ?<|im_end|>\n<|im_start|>assistant\na red ball"
        "<|im_end|>\n<|im_start|>user\nhow many ?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>",
        answers="a red ball<|im_end|>two<|im_end|>",
        request="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        caption="Generate an image: a cube",
        instruction=f"{HARMON}\nits depth",
        unconditional="<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n",
        system={"": "<|im_start|>user\nwhat", "Be brief.": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhat"},
        special="<|image_pad|>",
        three_pictures=36,
        after_prompt=19,
    ),
    "bagel": Format(
        conversation=f"{BAGEL}{BAGEL}<|im_start|>what is this ?<|im_end|><|im_start|>a red ball<|im_end|>"
        "<|im_start|>how many ?<|im_end|><|im_start|>two<|im_end|>",
        answers="a red ball<|im_end|>two<|im_end|>",
        request="{}<|im_end|><|vision_start|><|vision_end|>",
        caption="<|im_start|>a cube",
        instruction=f"<|vision_start|><|vision_end|>{BAGEL}<|im_start|>its depth",
        unconditional=f"<|vision_start|><|vision_end|>{BAGEL}<|vision_start|><|vision_end|>",
        system={"": "<|im_start|>what", "Be brief.": "<|im_start|>Be brief.<|im_end|><|im_start|>what"},
        special="<|im_start|>",
        three_pictures=33,
        after_prompt=16,
        other_positions=16,
    ),
}


@pytest.fixture
def reads(tiny):
    """The format of the family."""
    return FORMATS[tiny.family.name]


@pytest.fixture
def processor(tiny):
    return tiny.processor()


def visual_tokens(processor, reads):
    """Of one picture."""
    return processor.tokenizer.encode(reads.instruction).count(processor.format.image)


def test_conversation_format(processor, reads, picture):
    inputs = understand(processor, UnderstandRow([picture(0), picture(1)], TURNS[:2]))
    assert words(processor, inputs) == reads.conversation
    labeled = inputs.labels[0] != IGNORE
    assert processor.tokenizer.decode(inputs.tokens[0][labeled].tolist()) == reads.answers
    assert torch.equal(inputs.labels[0][labeled], inputs.tokens[0][labeled])
    assert inputs.counts.tolist() == [labeled.sum()]
    seen = inputs.tokens[0][inputs.image_positions[0]]
    assert len(seen) == 2 * visual_tokens(processor, reads) and (seen == processor.format.image).all()
    assert inputs.images.shape == (1, 2, 3, reads.source_side, reads.source_side)
    assert inputs.tokens.shape[1] % 8 == 0 and inputs.segments is None


def test_generation_format(processor, reads, picture):
    rows = GenerateRow(" a cube ", picture(0)), GenerateRow("its depth", picture(0), source=picture(1)), None
    inputs = generate(processor, *rows)
    assert words(processor, inputs, 0) == reads.request.format(reads.caption)
    assert words(processor, inputs, 1) == reads.request.format(reads.instruction)
    assert inputs.counts.tolist() == [reads.loss_positions] * 2 + [0] and processor.after_prompt == reads.after_prompt
    assert inputs.attention[:, -1].all() and inputs.tokens.shape[1] % 8 == 0
    assert inputs.image_valid.tolist() == [[False], [True], [False]] and inputs.intact.tolist() == [True] * 3
    assert inputs.targets.shape == (3, 3, reads.target_side, reads.target_side)
    assert (inputs.targets[2] == 0).all() and (inputs.images[2] == 0).all()


def test_a_dropped_condition_leaves_no_prompt_and_no_source_unless_the_format_keeps_it(processor, reads, picture):
    inputs = generate(processor, GenerateRow("a cube", picture(0), source=picture(1), unconditional=True))
    assert words(processor, inputs).replace(processor.tokenizer.pad_token, "") == reads.unconditional
    assert inputs.intact.tolist() == [False]
    kept = processor.format.keeps_source
    assert inputs.image_positions.any() == kept and inputs.image_valid.tolist() == [[kept]]


def test_a_long_prompt_loses_text_only(processor, reads, picture):
    long = "cube " * 200
    inputs = generate(processor, GenerateRow(long, picture(0), source=picture(1)))
    assert inputs.attention.sum() + reads.after_prompt + reads.other_positions == LENGTH and inputs.intact.tolist() == [False]
    text, closing = words(processor, inputs), reads.request.format(reads.instruction).split("its depth")[1]
    kept = text.removesuffix(closing)[text.index("cube") :]
    assert text.endswith(closing) and len(kept) > 30 and long.startswith(kept)
    assert inputs.image_positions.sum() == visual_tokens(processor, reads)


def test_rows_that_cannot_fit_are_refused(tiny, reads, picture):
    narrow, pictures = tiny.processor(max_length=20), [picture(0)] * 3
    with pytest.raises(DataError, match=f"Sample key: 3 image.*take {reads.three_pictures} tokens, and model.max_length is 20"):
        understand(narrow, UnderstandRow(pictures, TURNS))
    narrow = tiny.processor(max_length=reads.after_prompt + 3)
    with pytest.raises(
        ConfigError, match=rf"max_length={narrow.max_length} .*{reads.after_prompt} positions .*Give model.max_length="
    ):
        generate(narrow, GenerateRow("a", picture(0)))
    with pytest.raises(ConfigError, match="with a source image it needs"):
        generate(narrow, GenerateRow("a", picture(0), source=picture(0)))


def test_a_system_prompt_or_none_comes_first(tiny, reads, tmp_path):
    for prompt, start in reads.system.items():
        with_replaced(tiny.path, tmp_path, b"", b"")
        file = tmp_path / "processor_config.json"
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | {"system_prompt": prompt}))
        processor = tiny._replace(path=tmp_path).processor()
        assert words(processor, understand(processor, UnderstandRow([], TURNS[:1]))).startswith(start)


def test_a_tokenizer_of_another_model_is_refused(tiny, reads, tmp_path):
    without = with_replaced(tiny.path, tmp_path, reads.special.encode(), b"<another token>")
    with pytest.raises(ModelError, match=f"no token {reads.special.replace('|', '.')}, which {tiny.family.keys.family} needs"):
        tiny._replace(path=without).processor()


@pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
def test_pictures_are_normalized_to_plus_minus_one(processor):
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    asked = understand(processor, UnderstandRow([image], TURNS)).images[0, 0, :, 3, 4]
    drawn = generate(processor, GenerateRow("a", image)).targets[0, :, 3, 4]
    for values in (asked, drawn):
        assert values.tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)


def test_largest_rows_fill_the_sequence(processor, reads):
    inputs = processor.largest(PLAN, UNDERSTAND)
    assert inputs.attention.sum(1).tolist() == [LENGTH, LENGTH]
    assert inputs.images.shape[:2] == (2, 1) and (inputs.counts > 0).all()
    inputs = processor.largest(PLAN, GENERATE)
    assert (inputs.attention.sum(1) + processor.after_prompt + reads.other_positions).tolist() == [LENGTH, LENGTH]
    assert inputs.image_valid.all() and inputs.terms.tolist() == [1, 1]


def test_largest_rows_of_a_pack_have_its_tokens(processor):
    processor.pack_tokens = {UNDERSTAND: LENGTH + 1}
    plan = plan_from([RowRequest("u", UNDERSTAND, "s", 4), RowRequest("g", GENERATE, "s", 2)])
    inputs = processor.largest(plan, UNDERSTAND)
    assert inputs.lengths[:2] == [LENGTH] * 2 and max(inputs.lengths[2:]) < LENGTH / 2
    assert inputs.image_valid.all() and (inputs.counts > 0).all()
    assert processor.largest(plan, GENERATE).attention[0].sum() > LENGTH / 2, "its rows are not packed"


def test_a_processor_travels_to_workers_and_gives_answers_back(processor, picture):
    row = UnderstandRow([picture(0)], TURNS)
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(understand(copy, row).tokens, understand(processor, row).tokens)
    for answer, end in ((" a red ball", processor.eos_id), ("a red ball", processor.pad_id)):
        tokens = processor.tokenizer.encode(answer, add_special_tokens=False)
        assert processor.text([*tokens, processor.eos_id, end]) == "a red ball"
