"""A model folder, shards and a recipe so small that a launch of two ranks spends its time on start-up."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megaunigame.models.base import UnifiedModel
from megaunigame.registry import available
from tests.data.shard_files import encoded, talk, write_shards
from tests.tiny import write_tiny

QUESTIONS = ["what is it ?", "is it large ?", "which color has it ?"]
ANSWERS = ["a ball", "no", "dark red or blue"]
LONG = 4200
"""Tokens of a long row."""
FOLDERS = {name: "model" if name == "janus" else name for name in available("models", UnifiedModel)}
"""Family -> its folder in the home of a launch."""
TWO_HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
ONE_LAYER = {"num_hidden_layers": 1, "num_attention_heads": 2}
TEXTS, VOCABULARY = QUESTIONS + ANSWERS, 270


def write_model(folder: Path, seed: int = 0, sharpness: float = 1.0, width: int = 32, longest: int = 2048) -> Path:
    """A random Janus for 16x16 pictures: 4 visual tokens, 4 codes; `longest`: positions of its language model.

    `sharpness`: factor on the queries and keys of the language model, whose attention is nearly even without it.
    """

    def factor(name: str) -> float:
        return sharpness if "language_model" in name and name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0

    shape = {
        "vision_config": {"patch_size": 8, **ONE_LAYER, "projection_dim": width, "num_image_tokens": 4},
        "text_config": {"hidden_size": width, "intermediate_size": 48, **TWO_HEADS, "max_position_embeddings": longest},
        "vq_config": {
            **{"channel_multiplier": [1, 1, 1, 1], "latent_channels": 32, "num_embeddings": 32},
            **{"projection_dim": width, "image_token_embed_dim": width},
        },
    }
    return write_tiny("janus", folder, TEXTS, VOCABULARY, seed=seed, factor=factor, **shape).path


OPENUNI = {
    "image_size": 16,
    "queries": 4,
    "internvl": {"vision_config": ONE_LAYER, "text_config": {"hidden_size": 32, "intermediate_size": 48, **TWO_HEADS}},
    "connector": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2},
    "transformer": {
        **{"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "num_cross_attention_heads": 2},
        **{"cross_attention_head_dim": 16, "sample_size": 4},
    },
    "autoencoder": {"scaling_factor": 1.0},
    "flow": {"sample_steps": 20},
}
"""For 16x16 pictures: 4 visual tokens, 4 meta queries, latents of 4 x 4 x 4."""
EMU3 = {
    "text_config": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    "vq_config": {
        **{"channel_multiplier": [1, 1, 1, 1], "attn_resolutions": [3]},
        **{"codebook_size": 32, "temporal_downsample_factor": 2},
    },
    "settings": {"image_size": 16, "system_prompt": ""},
}
"""For 16x16 pictures: 2 x 2 codes out of 32."""
EMU3_5 = {
    "text_config": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    "vq_config": {"channel_multiplier": [1, 1, 1, 1], "attn_resolutions": [2], "codebook_size": 32},
    "settings": {"image_size": 16, "system_prompt": ""},
}
CHAMELEON = {
    **{"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    "vq_config": {"channel_multiplier": [1, 1, 1, 1], "num_embeddings": 32},
}
SHOW_O = {  # three layers, because loading must hold far less than the model at once
    "text_config": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3},
    "vq_config": {
        **{f"{part}_{what}": [1, 1, 1, 1] for part in ("encoder", "decoder") for what in ("multipliers", "blocks")},
        "code_bits": 5,
    },
    "num_vq_tokens": 4,
    "generation_timesteps": 3,
}
"""The same."""
HARMON = {
    **{"image_size": 16, "source_size": 16},
    "llm": {"hidden_size": 32, "intermediate_size": 48, **TWO_HEADS, "num_key_value_heads": 1},
    "mar": {
        **{"image_size": 8, "width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "buffers": 2, "dropout": 0.0},
        **{"head_width": 32, "head_layers": 1},
    },
    "autoencoder": {"multipliers": [1, 1, 1], "attention_resolutions": [4]},
    "drawing": {"rounds": 2, "noise_steps": 2},
}
"""For 16x16 pictures: 4 x 4 tokens, of which positions are known for 2 x 2, and 2 buffers."""
BAGEL = {
    "text_config": {"hidden_size": 32, "intermediate_size": 48, **TWO_HEADS, "num_key_value_heads": 1},
    "vision_config": {"patch_size": 8, "hidden_size": 32, "intermediate_size": 48, **ONE_LAYER},
    "vae_config": {"multipliers": [1, 1, 1]},
    "max_latent_size": 2,
    "vit_max_num_patch_per_side": 2,
}
"""For 16x16 pictures: 4 visual tokens, 4 latent tokens."""
BLIP3O_NEXT = {  # as many layers, for the same reason
    "text_config": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3},
    "image_size": 16,
    "sana": {"sample_size": 4},
    "vq_config": {"codebook_size": 32, "image_size": 8},
    "settings": {"system_prompt": ""},
}
"""For 16x16 pictures: 2 x 2 codes out of 32, latents of 4 x 4 x 4."""
SHAPES = {
    **{"openuni": OPENUNI, "emu3": EMU3, "emu3_5": EMU3_5, "chameleon": CHAMELEON, "show_o": SHOW_O},
    **{"harmon": HARMON, "bagel": BAGEL, "blip3o_next": BLIP3O_NEXT},
}


def write_family(folder: Path, family: str) -> Path:
    """The random model of a family."""
    if family == "janus":
        return write_model(folder)
    return write_tiny(family, folder, TEXTS, VOCABULARY, **SHAPES[family]).path


def write_families(home: Path) -> Path:
    """The random models of all families, in the home of a launch."""
    return Path(shutil.copytree(_families(), home, dirs_exist_ok=True))


@cache
def _families() -> Path:
    """Made once in a process."""
    home = Path(tempfile.mkdtemp(prefix="families"))
    atexit.register(shutil.rmtree, home)
    for family in available("models", UnifiedModel):
        write_family(home / FOLDERS[family], family)
    return home


def sample(number: int) -> dict[str, bytes]:
    """Every fifth sample is text only; every seventh has no caption."""
    rng = np.random.default_rng(number)
    turns = rng.permutation(3)[: 1 + number % 3]
    said = talk(*((QUESTIONS[i], ANSWERS[(i + number) % 3]) for i in turns))
    meta = {"conversations": said} | ({"caption": f"picture {number % 4}"} if number % 7 else {})
    fields = {"json": json.dumps(meta).encode()}
    if number % 5:
        fields["png"] = encoded(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return fields


def write_data(folder: Path, samples: int = 64) -> Path:
    return write_shards(folder, [samples // 4] * 4, fields=sample)


def long_sample(number: int) -> dict[str, bytes]:
    """A picture, a question of more tokens than a long row takes, and an answer of more than half of them."""
    words = np.random.default_rng(number).choice(" ".join(ANSWERS).split(), 5000)
    said = talk((" ".join([QUESTIONS[number % 3], *words]), " ".join(words[:1000])))
    fields = sample(5 * number + 1)
    return {**fields, "json": json.dumps({"conversations": said, "caption": f"picture {number}"}).encode()}


def write_long_world(home: Path) -> None:
    """A model and shards of long rows."""
    write_model(home / "long_model", sharpness=20.0, longest=LONG)
    write_shards(home / "long_shards", [16], fields=long_sample)


def long_world(home: Path) -> dict:
    """The blocks of a recipe that trains on them."""
    return {
        "model": {"path": str(home / "long_model"), "max_length": LONG},
        "data": {"train": {"shards": str(home / "long_shards"), "window": 2}},
        "objectives": {"understanding": {"rows": 1}, "generation": {"caption_rows": 2, "pixel_rows": 0}},
    }


def edit_sample(number: int) -> dict[str, bytes]:
    """One to three edits, the first of one or two source pictures, and a question about all pictures."""
    rng = np.random.default_rng(number)
    edits: list[Any] = ["paint it red", ["now at night", "let it be dark"], "smaller"][: 1 + number % 3]
    if number % 2:
        edits[0] = "<image> in the colors of <image> , on paper"
    pictures = len(edits) + 1 + number % 2
    meta = {"edits": edits, "conversations": talk((QUESTIONS[number % 3], ANSWERS[number % 3]))}
    later = {f"picture{n}.png": encoded(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for n in range(2, pictures + 1)}
    first = encoded(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return {"json": json.dumps(meta).encode(), "png": first, **later}


def write_edits(folder: Path, samples: int = 32) -> Path:
    return write_shards(folder, [samples // 2] * 2, fields=edit_sample)


def write_pictures(folder: Path, samples: int = 6) -> Path:
    """Samples that all have an image and a caption, as the evaluation of generation wants them."""
    return write_shards(folder, [samples], fields=lambda number: sample(35 * number + 1))


def merged(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Blocks are merged, other values replaced."""
    blocks = {key: {**defaults[key], **value} for key, value in settings.items() if isinstance(defaults.get(key), dict)}
    return {**defaults, **settings, **blocks}


def write_recipe(path: Path, home: Path, **settings) -> Path:
    """A recipe on `home`/shards and the family's folder in `home`; `settings` are top-level blocks that replace or extend the
    default. A stream's `shards` may be the name of a folder in `home`."""
    family = settings.get("model", {}).get("family", "janus")
    recipe = {
        "name": "tiny",
        "output": str(home / "run"),
        "seed": 5,
        "model": {"path": str(home / FOLDERS[family]), "train": "full", "attention": "sdpa", "max_length": 96},
        "data": {"train": {"shards": str(home / "shards"), "window": 2}},
        "loader": {"workers": 0, "prefetch": 2},
        "objectives": {"understanding": {"rows": 2}, "generation": {"caption_rows": 1, "pixel_rows": 2, "drop": 0.3}},
        "batch": {"accumulation": 1},
        # A large epsilon keeps AdamW's update a smooth function of the gradient, so that comparisons mean something.
        "optimizer": {"lr": 1.0e-2, "eps": 1.0e-3, "clip": 0.5, "weight_decay": 0.1, "group_lr": {}},
        "schedule": {"steps": 6, "kind": "cosine", "warmup_steps": 1},
        "engine": {"ds_config": "ds_configs/zero3_cpu.json", "precision": "fp32", "timeout_minutes": 1},
        "checkpoint": {"every": 100},
        "monitor": {"every": 1, "trackers": [], "progress": False},
    }
    whole = merged(recipe, settings)
    data = {name: {**stream, "shards": str(home / stream["shards"])} if "shards" in stream else stream
            for name, stream in whole["data"].items()}  # fmt: skip
    path.write_text(yaml.safe_dump({**whole, "data": data}))
    return path
