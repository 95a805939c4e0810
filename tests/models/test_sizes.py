"""Folders of published sizes: written without weights, opened like any other, with the published numbers of parameters."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megaunigame.errors import ModelError
from megaunigame.models.causal.model import CausalModel
from megaunigame.models.show_o.conversation import SPECIAL
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.registry import find
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.tiny_world import blip3o_next, chameleon, emu3, emu3_5, harmon
from megaunigame.tiny_world.openuni import SHIPPED, tiny_openuni
from megaunigame.tiny_world.show_o import tokenizer_of_words
from tests.models.shared import FAMILIES, built

TOTALS = {
    ("janus", "1b"): 2_076_636_811,
    ("janus", "7b"): 7_407_773_323,
    ("emu3", "8b"): 8_762_751_807,
    ("emu3_5", "34b"): 34_103_460_864 + 455_336_963,
    # Of a Hugging Face conversion, and the decoder of the image tokenizer, which it leaves out.
    ("chameleon", "7b"): 7_043_090_432 + 39_294_851,
    ("chameleon", "30b"): 34_323_732_480 + 39_294_851,
    # Qwen3-1.7B with more tokens, SANA1.5-1.6B and a connector; autoencoder; what is used of the vision tokenizer.
    ("blip3o_next", "3b"): 3_468_932_000 + 312_250_275 + 519_108_336,
    ("show_o", "1.3b_256"): 1_448_176_770 + 95_387_004,
    ("show_o", "1.3b_512"): 1_448_176_770 + 95_387_004,
    # Of the published parts, 0.938, 0.592 and 0.052 billion, and the autoencoder; the next two alike.
    ("openuni", "b"): 1_584_601_504 + 312_250_275,
    ("openuni", "l"): 3_919_265_184 + 312_250_275,
    ("openuni", "38b"): 43_344_619_296 + 312_250_275,
    # Language model, MAR without its classes, projectors; KL-16.
    ("harmon", "0.5b"): 494_032_768 + 207_924_768 - 768_000 + 2_985_344 + 66_456_019,
    ("harmon", "1.5b"): 1_543_714_304 + 942_403_104 - 1_280_000 + 8_656_640 + 66_456_019,
    # Without the two position tables of the checkpoint, 32,241,664 numbers, which are computed.
    ("bagel", "7b_512"): 14_575_018_464 + 83_819_683,
    ("bagel", "7b_1024"): 14_575_018_464 + 83_819_683,
}
"""Trained parameters and frozen tokenizer together."""
JANUS_WEIGHTS = Path(__file__).parents[2] / "megaunigame/tiny_world/weights/janus"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str, str], Path]:
    """Writes the folder of a size once."""

    @functools.cache
    def write(name: str, size: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{name}_{size}")
        find("models", name, CausalModel).write_size(size, folder)
        return folder

    return write


@pytest.mark.parametrize("name, size", TOTALS)
def test_a_published_size_has_the_published_number_of_parameters(folder_of, name, size):
    folder = folder_of(name, size)
    with torch.device("meta"):
        model = built(find("models", name, CausalModel), folder, max_length=512)
        parts = model, model.build_frozen()
    assert sum(p.numel() for part in parts for p in part.parameters()) == TOTALS[name, size]
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    "name, size, length, picture, codes",
    [
        ("janus", "7b", 2048, 384, 576),
        ("emu3", "8b", 9216, 720, 8100),
        ("emu3_5", "34b", 4224, 720, 2025),
        ("chameleon", "7b", 4096, 512, 1024),
        ("show_o", "1.3b_512", 2304, 512, 1024),
        ("harmon", "1.5b", 2560, 512, 1024),
        ("bagel", "7b_512", 4096, 512, 1024),
        ("bagel", "7b_1024", 6144, 1024, 4096),
        ("blip3o_next", "3b", 2048, 1024, 729),
    ],
)
def test_the_largest_rows_of_a_size_collate(folder_of, name, size, length, picture, codes):
    processor = find("models", name, CausalModel).open_processor(str(folder_of(name, size)), max_length=length)
    plan = plan_from([RowRequest("answers", UNDERSTAND, "scenes", 1), RowRequest("pixels", GENERATE, "scenes", 2)])
    understand, generate = processor.largest(plan, UNDERSTAND), processor.largest(plan, GENERATE)
    assert understand.tokens.shape == (1, length)
    assert (generate.attention.sum(1) + processor.after_prompt).tolist() == [length, length]
    assert generate.targets.shape == (2, 3, picture, picture) and generate.counts.tolist() == [codes, codes]


def test_the_codes_of_a_size_lie_next_to_each_other(folder_of):
    tokenizer = read_tokenizer(folder_of("emu3", "8b"))
    first, last = tokenizer.convert_tokens_to_ids(["<|visual token 000000|>", "<|visual token 032767|>"])
    assert last - first == 32767 and len(tokenizer) <= 184622


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_sizes_and_names_them_for_another(tmp_path, name):
    sizes = list(find("models", name, CausalModel).sizes)
    assert "tiny" in sizes and len(sizes) > 1
    with pytest.raises(ModelError, match=f"Unknown size of {name} 'tinny'. Did you mean 'tiny'.*{sizes[-1]}"):
        find("models", name, CausalModel).write_size("tinny", tmp_path)


def shape_of(config: dict) -> dict:
    """A configuration without the ids of its tokenizer, which a stand-in numbers differently."""
    return {
        key: shape_of(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not key.endswith("_token_id") and key not in ("vocabulary_map", "num_patches", "scaling_factor")
    }


def test_the_tiny_sizes_are_those_of_the_tiny_world(folder_of):
    names = ("janus", "emu3", "emu3_5", "openuni", "chameleon", "show_o", "harmon", "blip3o_next")
    written = {name: json.loads((folder_of(name, "tiny") / "config.json").read_text()) for name in names}
    shipped = json.loads((JANUS_WEIGHTS / "config.json").read_text())
    assert shape_of(written["janus"]) == shape_of(shipped)
    words = read_tokenizer(SHIPPED)
    assert shape_of(written["openuni"]) == shape_of(json.loads(json.dumps(tiny_openuni(words).to_dict())))
    assert written["emu3"]["text_config"]["vocab_size"] == len(emu3.tokenizer_with_codes())
    assert written["emu3_5"]["vocab_size"] == len(emu3_5.tokenizer_with_codes())
    assert written["chameleon"]["vocab_size"] == len(chameleon.tokenizer_with_codes())
    assert written["harmon"]["llm"]["vocab_size"] == len(harmon.tokenizer_of_words())
    assert written["blip3o_next"]["vocab_size"] == len(blip3o_next.tokenizer_with_codes())
    assert written["show_o"]["llm_vocab_size"] + len(SPECIAL) == len(tokenizer_of_words())
