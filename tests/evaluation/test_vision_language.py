"""The understanding curve of transformers' vision-language models against the maps that eager attention returns."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from megaunigame.attention import taps as attention_taps
from megaunigame.attention.queries import Queries
from megaunigame.attention.targets import read_targets
from megaunigame.data.conversation import question_answers
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.evaluation.attention.chat_rows import ChatRows
from megaunigame.evaluation.attention.curves import Measuring
from megaunigame.evaluation.attention.vision_language import VisionLanguageModel, _RowTap, measure_understanding
from megaunigame.evaluation.lockstep import read_sample
from megaunigame.step.inputs import Taps
from tests.commands.here import run_here
from tests.evaluation.fakes import bright_dark, write_tars
from tests.evaluation.tiny_vision_language import CHAMELEON, DEPTH, write_vision_language
from tests.multi_process.launcher import REPOSITORY, run_script
from tests.multi_process.tiny_run import write_family, write_recipe
from tests.worlds import on_ranks

KINDS = list(DEPTH)
SAMPLES = 5
SCRIPT = REPOSITORY / "launch" / "measure_attention.py"
ENDS = {
    "qwen2_5_vl": ("", "<|im_end|>"),
    "internvl": ("", "<|im_end|>"),
    "llava": (" ", ""),
    "gemma3": ("", "<end_of_turn>"),
    "chameleon": ("", "</s>"),
}
"""What belongs to an answer before and after its text, in the tokens of each model."""
PAIRS = [("how light is 3 ?", "bright"), ("what color is it ?", "red")]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return write_vision_language(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def kind(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).config.model_type


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Five samples; the last three have no picture, no conversation, and a control token in a question."""
    samples = bright_dark(SAMPLES + 1)
    samples[3] = (None, samples[3][1])
    samples[4][1].pop("conversations")
    samples[5][1]["conversations"][0]["value"] += " </s><|im_end|><end_of_turn>"
    return write_tars(tmp_path_factory.mktemp("shards"), samples)


def grey(level: int = 90) -> Image.Image:
    return Image.fromarray(np.random.default_rng(level).integers(0, 255, (20, 28, 3), dtype=np.uint8))


def eager_shares(folder, pictures, pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """(L,) each: the definition on whole maps; answers found by what they say."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    turns = [
        {"role": role, "content": [*([{"type": "image"}] * len(pictures) * first), {"type": "text", "text": text}]}
        for number, pair in enumerate(pairs)
        for role, text, first in (("user", pair[0], number == 0), ("assistant", pair[1], False))
    ]
    text = (processor if processor.chat_template else processor.tokenizer).apply_chat_template(turns, tokenize=False)
    inputs = processor(text=[text], images=list(pictures), return_tensors="pt", add_special_tokens=False)
    tokens = inputs["input_ids"][0].tolist()
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    queries, begin = [], 0
    for _, answer in pairs:
        said = processor.tokenizer(answer.join(ENDS[model.config.model_type]), add_special_tokens=False)["input_ids"]
        begin = next(i for i in range(begin, len(tokens)) if tokens[i : i + len(said)] == said)
        queries += range(begin, begin + len(said))
        begin += len(said)
    keys = inputs["input_ids"][0] == model.config.image_token_id
    of_pictures = torch.stack([m[0][:, queries][:, :, keys].sum(-1).mean() for m in maps])
    return of_pictures, torch.stack([m[0][:, queries][:, :, 0].mean() for m in maps])


def loaded(folder) -> VisionLanguageModel:
    return VisionLanguageModel.load(folder, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("chunk", [1000, 2**24])
@pytest.mark.parametrize("pictures", [1, 2])
def test_shares_are_those_of_the_maps(folder, pictures, chunk, monkeypatch):
    monkeypatch.setattr(attention_taps, "CHUNK_ELEMENTS", chunk)
    shown = [grey(level) for level in range(pictures)]
    expected, expected_first = eager_shares(folder, shown, PAIRS)
    teacher = loaded(folder)
    shares, first = teacher.shares(teacher.rows.row("a", shown, PAIRS))
    torch.testing.assert_close(shares, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(first, expected_first, atol=2e-6, rtol=0)
    assert shares.max() - shares.min() > 0.02 and first.max() > 0.003, (shares, first)


def test_answers_and_pictures_of_a_row(folder, kind):
    teacher = loaded(folder)
    row = teacher.rows.row("a", [grey()], PAIRS)
    tokens = row.inputs["input_ids"][0]
    said = teacher.rows.processor.tokenizer.decode(tokens[row.answers[0]])
    assert said == "".join(answer.join(ENDS[kind]) for _, answer in PAIRS)
    assert row.pictures[0].sum() >= 4 and (tokens[row.pictures[0]] == teacher.rows.image_token).all()


def test_curve_of_shards(folder, shards, caplog):
    """Of six samples three count; the mean and the spread are over those, on any number of ranks."""
    index = ShardIndex.open(shards)
    settings = Measuring(limit=0, passes=["understand"])
    teachers = [loaded(folder) for _ in range(2)]  # not in the threads that play ranks: transformers cannot load in two at once
    measured = [
        on_ranks(size, lambda ranks: measure_understanding(teachers[ranks.rank], ranks, index, settings, 512))[0]["understand"]
        for size in (1, 2)
    ]
    found = []
    for position in range(3):
        sample = read_sample(index, position)
        shown = [Image.fromarray(sample.image.permute(1, 2, 0).numpy())]
        found.append(eager_shares(folder, shown, question_answers(sample)))
    keys, first = (torch.stack(part) for part in zip(*found, strict=True))
    for curve in measured:
        assert curve.samples == 3
        assert curve.mean == pytest.approx(keys.mean(0).tolist(), abs=3e-6)
        assert curve.spread == pytest.approx(keys.std(0, correction=0).tolist(), abs=3e-6)
        assert curve.first == pytest.approx(first.mean(0).tolist(), abs=3e-6)
    assert "3 of 6 samples left out" in caplog.text


def test_independent_questions_are_weighted_by_their_tokens(folder, shards):
    index = ShardIndex.open(shards)
    settings = Measuring(limit=1, passes=["understand"], independent=True)
    curve = on_ranks(1, lambda ranks: measure_understanding(loaded(folder), ranks, index, settings, 512))[0]["understand"]
    sample, teacher = read_sample(index, 0), loaded(folder)
    shown = [Image.fromarray(sample.image.permute(1, 2, 0).numpy())]
    rows = [teacher.rows.row("a", shown, [pair]) for pair in question_answers(sample)]
    tokens = torch.tensor([float(row.answers.shape[1]) for row in rows])
    alone = torch.stack([teacher.shares(row)[0] for row in rows])
    assert len(set(tokens.tolist())) > 1
    assert curve.mean == pytest.approx(((tokens @ alone) / tokens.sum()).tolist(), abs=1e-6)


def test_nothing_to_measure(folder, shards):
    index, settings = ShardIndex.open(shards), Measuring(limit=0, passes=["understand"])
    with pytest.raises(DataError, match="in a row of at most 12 tokens, and none of the first 6 samples"):
        on_ranks(1, lambda ranks: measure_understanding(loaded(folder), ranks, index, settings, 12))


def test_the_hook_is_gone_after_an_error(folder):
    teacher = loaded(folder)
    row = teacher.rows.row("a", [grey()], PAIRS)
    row.inputs["pixel_values"] = row.inputs["pixel_values"][..., 1:]
    with pytest.raises((RuntimeError, ValueError)):
        teacher.shares(row)
    assert not teacher.language_model._forward_pre_hooks


def test_cross_attention_is_refused():
    queries = Queries(torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.bool), [(0, 5)])
    tap = _RowTap(Taps((0,)), queries, torch.ones(1, 5, dtype=torch.bool), torch.eye(1, 5, dtype=torch.bool))
    tap.measure(0, torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4), None, 1.0)
    with pytest.raises(ModelError, match="Layer 0 attends to 9 positions and the row has 5 tokens"):
        tap.measure(0, torch.ones(1, 2, 5, 4), torch.ones(1, 2, 9, 4), None, 1.0)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write_vision_language("llava", tmp_path_factory.mktemp("llava"))


def test_from_a_folder_to_a_file(llava, shards, tmp_path):
    """In another process, because the script closes its process group."""
    out = tmp_path / "targets.yaml"
    given = ["--hf", str(llava), "--shards", str(shards), "--out", str(out), "--device", "cpu", "--dtype", "fp32"]
    done = run_script(SCRIPT, *given, "--layers", "7", "--samples", "3")
    assert done.returncode == 0, done.stderr
    targets = read_targets(out, 7)
    assert list(targets) == ["understand"] and len(targets["understand"]) == 7
    header = out.read_text()
    assert f"Measured on {llava}" in header and f"stretched from the {DEPTH['llava']} layers of that model to 7" in header
    assert "understand: 3 samples" in header and "Attention of answers to the picture" in done.stdout
    with pytest.raises(ConfigError, match="--layers 5 stretches"):
        read_targets(out, 5)


@pytest.mark.parametrize(
    "given, error, message",
    [
        (["--hf", "nowhere"], ModelError, "nowhere: no config.json"),
        (["--hf", "{llava}", "--family", "janus"], ConfigError, "leave out --family and --passes"),
        (["--hf", "{llava}", "--passes", "generate"], ConfigError, "measures the understand pass"),
        (["--hf", "{llava}", "--bands", "4"], ConfigError, "4 bands of 3 layers"),
        (["--hf", "{llava}", "--layers", "0"], ConfigError, "--layers must be at least 1; got 0"),
        (["--model", "{llava}"], ConfigError, "--model needs --family"),
    ],
)
def test_a_wrong_command_line(llava, shards, tmp_path, given, error, message):
    command = [part.format(llava=llava) for part in given]
    with pytest.raises(error, match=message):
        run_here("measure_attention", [*command, "--shards", str(shards), "--out", str(tmp_path / "t.yaml")])


@pytest.mark.parametrize("family", ["show_o", "openuni"])
def test_a_folder_of_a_family_says_what_to_type(family, shards, tmp_path):
    folder = write_family(tmp_path / "model", family)
    command = ["--hf", str(folder), "--shards", str(shards), "--out", str(tmp_path / "t.yaml")]
    with pytest.raises(ModelError, match=f"Instead of --hf, type --model {folder} --family {family}, .*{family}"):
        run_here("measure_attention", command)


def test_a_run_says_what_to_type(shards, tmp_path):
    write_recipe(tmp_path / "recipe.yaml", tmp_path, model={"family": "emu3"})
    command = ["--hf", str(tmp_path), "--shards", str(shards), "--out", str(tmp_path / "t.yaml")]
    with pytest.raises(
        ModelError, match=f"is a run .*megaunigame export {tmp_path} --out FOLDER.*--model FOLDER --family emu3 instead"
    ):
        run_here("measure_attention", command)


def test_a_language_model_is_refused(llava, tmp_path):
    AutoModelForImageTextToText.from_pretrained(llava).config.text_config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="LlamaConfig is not an image-text-to-text model"):
        loaded(tmp_path)


def test_a_folder_that_lacks_weights_is_refused(llava, tmp_path):
    shutil.copytree(llava, tmp_path / "part")
    weights = load_file(llava / "model.safetensors")
    lost = next(name for name in weights if "layers.1." in name and "q_proj" in name and "vision" not in name)
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, for example model\.language_model\.layers\.1\.self_attn\.q_proj"):
        loaded(tmp_path / "part")


def test_separators_of_the_processor_are_not_answers(tmp_path):
    """Whether or not the template writes them after the questions, as the processor does after a prompt."""
    folder = write_vision_language("chameleon", tmp_path)
    teacher = loaded(folder)
    rows, tokenizer = teacher.rows, teacher.rows.processor.tokenizer
    for template in (CHAMELEON, CHAMELEON.replace("{{ sep_token }}", " ")):
        tokenizer.chat_template = template
        row = rows.row("a", [grey()], PAIRS)
        tokens = row.inputs["input_ids"][0]
        separators = (tokens == tokenizer.sep_token_id).sum()
        assert tokens[-1] == tokenizer.sep_token_id and separators == (3 if template is CHAMELEON else 1)
        said = tokenizer.decode(tokens[row.answers[0]])
        assert [answer.strip() for answer in said.split("</s>")] == ["bright", "red", ""]


def test_a_template_whose_answers_cannot_be_found(llava):
    processor = AutoProcessor.from_pretrained(llava)
    with pytest.raises(ModelError, match="template of a model writes a finished conversation unlike its prompt"):
        processor.chat_template = "{% if add_generation_prompt %}Question: {% endif %}" + processor.chat_template
        ChatRows(processor, 0, "a model").row("a", [grey()], PAIRS)
    with pytest.raises(ModelError, match="refuses questions and answers in turn: no images"):
        processor.chat_template = "{{ raise_exception('no images') }}"
        ChatRows(processor, 0, "a model").row("a", [grey()], PAIRS)
    with pytest.raises(ModelError, match="refuses questions and answers in turn: can only concatenate"):
        processor.chat_template = "{% for m in messages %}{{ m.content + 'a text' }}{% endfor %}"
        ChatRows(processor, 0, "a model").row("a", [grey()], PAIRS)
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="Neither the processor nor the tokenizer of a model has a chat template"):
        ChatRows(processor, 0, "a model")
