"""What the card of an exported folder says about its use, and its code, run as it stands there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ChameleonForConditionalGeneration, Emu3ForConditionalGeneration

from megaunigame.checkpoint.export import write_shards
from megaunigame.models.bagel import Bagel
from megaunigame.models.chameleon import Chameleon
from megaunigame.models.emu3 import Emu3
from megaunigame.models.emu3_5 import Emu3p5
from megaunigame.models.janus import Janus
from megaunigame.models.openuni import OpenUni
from megaunigame.models.show_o import ShowO
from megaunigame.tools.exporting import adapter_usage
from tests.tiny import Tiny, write_tiny

TEXTS = ["what is in the picture ? a red ball"] * 3
ODD = 'ef SIDE\'s "q" FOLDER SOURCE {base} \\n 😀'
EIGHT_PIXELS = {"vq_config": {"channel_multiplier": [1, 1, 1, 1], "attn_resolutions": [3], "codebook_size": 64}}
SIDE = 64


def exported(tiny: Tiny, out: Path) -> Path:
    """As launch/export.py writes a folder in bfloat16."""
    tiny.family.write_settings(str(tiny.path), out)
    both = [tiny.family.weights(str(tiny.path)), tiny.family.frozen_weights(str(tiny.path))]
    write_shards(((n, w.read(n)) for w in both for n in w.names()), out, torch.bfloat16, exact=both[1].names())
    config = out / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    return out


def emu3(path: Path, **shape) -> Tiny:
    return write_tiny("emu3", path, TEXTS, 290, settings={"image_size": SIDE, "source_size": SIDE}, **shape)


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.+?)```", page, re.DOTALL)


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    alone = f"import sys\nsys.modules['megaunigame'] = None\n{code}"
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-P", "-c", alone], cwd=folder, env=given, capture_output=True, text=True)


def test_the_code_of_emu3_runs_and_reads_the_codes_of_training(tmp_path):
    """In bfloat16, in a folder with an odd name; without the lines for the tokenizer some codes are others."""
    tiny = emu3(tmp_path / "model", **EIGHT_PIXELS)
    folder = exported(tiny, tmp_path / ODD)
    asking, drawing, _ = blocks(Emu3.usage(ODD, str(folder)))
    noise = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / "picture.png")
    shown = (
        "\nimport torch\ntorch.save(model.model.get_image_tokens(inputs['pixel_values'], inputs['image_sizes']), 'codes.pt')\n"
    )
    done = run(asking + shown + "assert model.dtype == torch.bfloat16", tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(drawing, tmp_path)
    assert done.returncode == 0 and Image.open(tmp_path / "drawn.png").size == (SIDE, SIDE), done.stderr

    ours = tiny.load()
    inputs = ours.processor.prompt_inputs([[noise.permute(2, 0, 1)]], ["what is in the picture ?"])
    grid = ours.processor.format.source_grid
    codes = grid.tokens(ours.vision_tokenizer.encode(inputs.images[0]).flatten(1)).flatten()
    assert torch.equal(torch.load(tmp_path / "codes.pt"), codes)
    rounded = Emu3ForConditionalGeneration.from_pretrained(folder)
    sizes = torch.tensor([[SIDE, SIDE]])
    assert not torch.equal(rounded.model.get_image_tokens(inputs.images[0], sizes), codes), "nothing was compared"


def test_the_code_of_chameleon_runs_and_reads_the_codes_of_training(tmp_path):
    """In bfloat16, in a folder with an odd name; the decoder is reported, and without the lines for it codes are others."""
    given = {"image_size": SIDE, "source_size": SIDE}
    tiny = write_tiny("chameleon", tmp_path / "model", TEXTS, 290, settings=given, vq_config={"num_embeddings": 200})
    folder = exported(tiny, tmp_path / ODD)
    page = Chameleon.usage(ODD, str(folder))
    asking, _ = blocks(page)
    noise = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / "picture.png")
    shown = "\nimport torch\ntorch.save(model.get_image_tokens(inputs['pixel_values']), 'codes.pt')\n"
    done = run(asking + shown + "assert model.dtype == torch.bfloat16", tmp_path)
    assert done.returncode == 0 and "model.vqmodel.decoder." in done.stderr and "UNEXPECTED" in done.stderr, done.stderr
    ours = tiny.load()
    inputs = ours.processor.prompt_inputs([[noise.permute(2, 0, 1)]], ["what is in the picture ?"])
    codes = ours.vision_tokenizer.encode(inputs.images[0]).flatten(1) + ours.grid.first
    assert torch.equal(torch.load(tmp_path / "codes.pt"), codes)
    rounded = ChameleonForConditionalGeneration.from_pretrained(folder)
    assert not torch.equal(rounded.get_image_tokens(inputs.images[0].bfloat16()), codes), "nothing was compared"


def test_the_card_of_other_cells_says_that_pictures_cannot_be_asked_about(tmp_path):
    tiny = emu3(tmp_path / "model")
    folder = exported(tiny, tmp_path / "out")
    page = Emu3.usage("out", str(folder))
    (drawing,) = blocks(page)
    assert "Questions with pictures do not work in transformers" in page and "stands for 4 pixels" in page
    done = run(drawing, tmp_path)
    assert done.returncode == 0 and Image.open(tmp_path / "drawn.png").size == (SIDE, SIDE), done.stderr


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        (Emu3p5, {"image_size": 16, "source_size": 12}),
        (ShowO, {"source_size": 12}),
        (Bagel, {"image_size": 16, "source_size": 12}),
    ],
)
def test_code_that_needs_this_package_runs(tmp_path, monkeypatch, family, settings):
    monkeypatch.chdir(tmp_path)
    write_tiny(family.name, tmp_path / "out", TEXTS, 290, settings=settings)
    Image.new("RGB", (20, 10), "red").save("picture.png")
    asking, drawing = blocks(family.usage("out", str(tmp_path / "out")))
    for code in (asking, drawing):
        exec(compile(code, "card", "exec"), {})
    assert Image.open("drawn.png").size == (16, 16)


@pytest.mark.parametrize("family", [Janus, Emu3])
def test_names_of_folders_are_literals(tmp_path, family):
    path = (emu3(tmp_path, **EIGHT_PIXELS) if family is Emu3 else write_tiny("janus", tmp_path, TEXTS, 290)).path
    for page in (family.usage(ODD, str(path)), adapter_usage(family, ODD, ODD)):
        code = [block for block in blocks(page) if "from_pretrained" in block]
        assert code
        for block in code:
            strings = {node.value for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)}
            assert ODD in strings and "FOLDER" not in strings


def test_adapters_of_a_model_without_class_have_no_code():
    page = adapter_usage(OpenUni, "out", "base")
    assert "python" not in page and "PEFT cannot load" in page and "model.adapter=out" in page
    assert "PeftModel" in adapter_usage(Janus, "out", "base")
