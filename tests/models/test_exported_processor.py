"""An exported folder in transformers alone: the same token ids, logits and codes as our own processor and model give.

The other side runs in a process that cannot import megaunigame: `plain_transformers.py`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors

from megaunigame.models.causal.codes import picker
from megaunigame.models.chameleon import Chameleon
from megaunigame.models.emu3 import Emu3
from megaunigame.models.emu3.configuration import cell
from megaunigame.models.emu3.processor_files import THEIR_CELL
from megaunigame.models.janus import Janus
from megaunigame.models.text.pictures import fit
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.models.weights.tensor_files import save_state
from tests.models.test_emu3_folder import official_folder
from tests.tiny import Tiny, write_tiny

SHIPPED = Path(__file__).resolve().parents[2] / "megaunigame" / "tiny_world" / "weights" / "janus"
QUESTION, DRAWN = "what color is the cube ?\nred?", "a small green cone"
TALK = ["what is this ?", "a red ball", "is it large ?", "no"]
TEXTS = [QUESTION, DRAWN, *TALK, "\n\n what ? is", "ask : a"] * 3
FOUR = [1, 1, 1, 1]
JANUS = {"vision_config": {"patch_size": 8}, "vq_config": {"channel_multiplier": FOUR, "num_embeddings": 40}}
EMU3 = {"vq_config": {"channel_multiplier": FOUR, "attn_resolutions": [3]}}
CHAMELEON = {"swin_norm": True, "vq_config": {"num_embeddings": 40}}
DRAWN_IN_TRANSFORMERS = ("janus", "janus 24 pixels", "janus official", "janus shipped", "emu3", "emu3 system prompt")
CASES = (*DRAWN_IN_TRANSFORMERS, "chameleon", "chameleon system prompt")
ATOL = 1e-4


def sharp(name: str) -> float:
    return 1.0 if "vqmodel" in name else 3.0


def official_janus(tiny: Tiny, path: Path) -> Tiny:
    """Settings under the key names of the official repository, and a tokenizer that adds its first token by itself."""
    shutil.copytree(tiny.path, path)
    tokenizer = read_tokenizer(tiny.path)
    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        (path / name).unlink()
    tokenizer.backend_tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizerFast"},
        "preprocessor_config": {
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
            "image_size": 16,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "background_color": [127, 127, 127],
        },
        "processor_config": {"processor_class": "VLChatProcessor", "num_image_tokens": 576, "sft_format": "deepseek"},
    }
    for name, content in settings.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return tiny._replace(path=path)


def source_of(case: str, home: Path) -> Tiny:
    if case == "janus shipped":
        return Tiny(Janus, SHIPPED, None, None, {})
    family, _, kind = case.partition(" ")
    shape = dict({"janus": JANUS, "emu3": EMU3, "chameleon": CHAMELEON}[family])
    settings: dict = {} if family == "janus" else {"image_size": 16, "source_size": 24, "system_prompt": ""}
    if kind == "24 pixels":
        shape["vision_config"] = {"patch_size": 8, "image_size": 24, "num_image_tokens": 576}
        settings = {"system_prompt": "You help.", "mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.25)}
    if kind == "system prompt":
        settings = {"image_size": 32, "source_size": 16} | ({} if family == "emu3" else {"system_prompt": "You help."})
    tiny = write_tiny(family, home, TEXTS, 290, factor=sharp, settings=settings, **shape)
    return official_janus(tiny, home.with_name("official")) if kind == "official" else tiny


def picture(seed: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Case -> (our model, what transformers saw of its export)."""
    home, sources = tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("sources")
    models = {}
    for case in CASES:
        tiny = source_of(case, sources / case.replace(" ", "_") / "model")
        model = models[case] = tiny.family.load(tiny.path, max_length=320)
        folder = home / case
        tiny.family.write_settings(str(tiny.path), folder / "model")
        both = [tiny.family.weights(str(tiny.path)), tiny.family.frozen_weights(str(tiny.path))]
        save_state(folder / "model", {name: each.read(name) for each in both for name in each.names()})
        for number in range(2):
            pixels = picture(number, model.processor.source_size)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"picture{number}.png")
        asked = {"question": QUESTION, "drawn": DRAWN, "talk": TALK, "system": "", "side": model.processor.image_size}
        (folder / "asked.json").write_text(json.dumps(asked))
    script = Path(__file__).with_name("plain_transformers.py")
    done = subprocess.run([sys.executable, "-P", str(script), str(home)], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {case: (models[case], torch.load(home / case / "seen.pt")) for case in CASES}


@pytest.fixture(params=CASES)
def both(request, sides):
    return sides[request.param]


def own(inputs) -> list[int]:
    return inputs.tokens[inputs.attention].tolist()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_questions_have_our_ids_and_logits(both, count):
    model, seen = both
    theirs = seen["asked"][count]
    pictures = [picture(number, model.processor.source_size) for number in range(count)]
    inputs = model.processor.prompt_inputs([pictures], [QUESTION])
    ours = own(inputs)
    # Where Emu3's rows have codes and line ends, transformers has placeholders.
    expected = [
        theirs["placeholder"] if them == theirs["placeholder"] else us for us, them in zip(ours, theirs["ids"], strict=True)
    ]
    assert theirs["ids"] == expected and theirs["ids by hand"] == expected
    if seen["class"] == "JanusProcessor":
        assert theirs["ids"] == ours
    if count:
        torch.testing.assert_close(theirs["pixels"].flatten(0, -4), inputs.images[0], rtol=0, atol=1e-5)
    with torch.no_grad():
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention))[inputs.attention]
    if isinstance(model, Chameleon):  # transformers allows no code in an answer
        logits[:, model.grid.ids] = torch.finfo(logits.dtype).min
    torch.testing.assert_close(theirs["logits"], logits, rtol=1e-4, atol=ATOL)


def test_a_conversation_has_the_ids_of_a_training_row(both):
    model, seen = both
    turns = list(zip(TALK[::2], TALK[1::2], strict=True))
    # transformers' processor of Chameleon puts the separator after everything, as if it were a prompt.
    after = model.processor.format.closing if isinstance(model, Chameleon) else []
    assert seen["talk"] == model.processor.format.understand(0, turns, False, 300).tokens + after


@pytest.mark.parametrize("both", DRAWN_IN_TRANSFORMERS, indirect=True)
def test_pictures_are_drawn_as_we_draw_them(both):
    model, seen = both
    ids, drawn = seen["drawn"]
    inputs = model.processor.generate_prompts([DRAWN])
    assert ids == own(inputs)
    codes = model.sample_codes(inputs, guidance=3.0, pick=picker(0.0, torch.Generator()))
    expected = codes[0] if isinstance(model, Janus) else model.grid.tokens(codes)[0]
    assert drawn == expected.tolist()


def test_an_answer_ends_where_ours_does(both):
    model, seen = both
    assert seen["ends"] == [model.processor.eos_id, model.processor.pad_id]


def test_an_export_of_an_export_is_the_same(tmp_path):
    """The break of the tokenizer is not put in twice."""
    Janus.write_settings(str(SHIPPED), tmp_path / "once")
    Janus.write_settings(str(tmp_path / "once"), tmp_path / "twice")
    for file in (tmp_path / "once").iterdir():
        assert file.read_text() == (tmp_path / "twice" / file.name).read_text(), file.name
    assert Janus.differences(str(tmp_path / "twice")) == []


def test_codes_of_another_size_are_said(tmp_path):
    """transformers' processor of Emu3 counts 8 pixels to a code."""
    tiny = write_tiny("emu3", tmp_path, TEXTS, 290, settings={"image_size": 16})
    assert cell(tiny.config) == 4 != THEIR_CELL
    said = Emu3.differences(str(tmp_path))
    assert [line.split(":")[0] for line in said] == ["one picture", "two pictures"] and "tokens instead of" in said[0]


def test_official_emu3_folders_get_a_processor(tmp_path):
    tiny = write_tiny("emu3", tmp_path / "tiny", TEXTS, 290, settings={"image_size": 16, "source_size": 12})
    folder = official_folder(tmp_path / "official", tiny)
    Emu3.write_settings(str(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "processor_config.json").read_text())["processor_class"] == "Emu3Processor"


def test_squares_of_every_side_fill_the_picture_of_emu3():
    """Their rule rounds square roots: some squares would lose or gain a row of codes with the exact area."""
    from transformers.models.emu3.image_processing_emu3 import smart_resize

    for source in (16, 64, 512, 720):
        bounds = (source**2 - source, source**2 + source)
        assert {smart_resize(side, side, 8, *bounds) for side in range(1, 2000)} == {(source, source)}


@pytest.mark.parametrize("family", ["janus", "emu3", "chameleon"])
@pytest.mark.parametrize("size", [(40, 40), (50, 33), (33, 50), (90, 7), (16, 12)])
def test_the_lines_for_pictures_that_are_not_square_make_our_picture(family, size):
    """Up to rounding: Pillow resizes there."""
    page = Path(__file__).resolve().parents[2] / "megaunigame" / "models" / family / "usage.md"
    block = next(b for b in re.findall(r"```python\n(.+?)```", page.read_text(), re.DOTALL) if "longer" in b)
    ramp = torch.linspace(0, 255, size[0] * size[1]).view(1, size[1], size[0]).expand(3, -1, -1).to(torch.uint8)
    names = {"picture": Image.fromarray(ramp.permute(1, 2, 0).contiguous().numpy())}
    exec(block.replace("SOURCE", "16"), names)
    ours = fit(ramp, 16).permute(1, 2, 0).int()
    assert (torch.from_numpy(np.array(names["picture"])).int() - ours).abs().max() <= 1


def test_the_page_has_the_code_of_the_cards():
    """Which tests/launch/test_export.py runs."""
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "exporting.md").read_text()
    cards = "".join((root / "megaunigame" / "models" / family / "usage.md").read_text() for family in ("janus", "emu3"))
    adapters = (
        (root / "megaunigame" / "tools" / "exporting.py")
        .read_text()
        .replace("{folder}", '"exported/adapter"')
        .replace("{base}", '"BASE"')
    )
    cards = cards.replace("FOLDER", "exported/tiny_sft").replace("SIDE", "64")
    blocks = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    assert len(blocks) == 5 and all(block in cards + adapters for block in blocks)


CASE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "official_processor"


@pytest.mark.skipif(not CASE.is_dir(), reason="the case lies outside the repository")
def test_the_official_settings_of_the_cases(tmp_path):
    folder = tmp_path / "official"
    shutil.copytree(SHIPPED, folder)
    (folder / "chat_template.jinja").unlink()
    for file in CASE.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    Janus.write_settings(str(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "processor_config.json").read_text())["num_image_tokens"] == 64
    assert Janus.differences(str(tmp_path / "out")) == []


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no\x1b[2J') }}",
    ],
)
def test_a_hostile_chat_template_runs_in_a_sandbox(tmp_path, monkeypatch, template):
    """Its failure is a line of the card of the export."""
    Janus.write_settings(str(SHIPPED), tmp_path / "janus")
    (tmp_path / "janus" / "chat_template.jinja").write_text(template)
    monkeypatch.chdir(tmp_path)
    said = Janus.differences(str(tmp_path / "janus"))
    assert len(said) == 4 and all("the chat template fails (" in line and "\x1b" not in line for line in said)
    assert not (tmp_path / "ran").exists()
