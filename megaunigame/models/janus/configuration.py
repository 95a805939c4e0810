"""config.json of a Janus folder -> transformers' JanusConfig, from Hugging Face folders and from the official ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import JanusConfig

from megaunigame.errors import ModelError
from megaunigame.models.weights.settings_files import config_from, read_config_file

TOWERS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "mlp_ratio": 4.0,
    },
}
"""Vision towers that an official configuration can name; it does not give their sizes."""

IGNORED_LANGUAGE_KEYS = ("_attn_implementation", "torch_dtype", "dtype")


def read_config(path: str | Path) -> JanusConfig:
    """The configuration of the model folder `path`. Raises ModelError for another family or no configuration."""
    file = Path(path) / "config.json"
    raw = read_config_file(file, "Give a Janus folder: Hugging Face layout or the official release.")
    kind = raw.get("model_type")
    if kind == "multi_modality":
        config = from_official(raw, file)
    elif kind == "janus":
        config = config_from(JanusConfig, raw, file)
    else:
        raise ModelError(f"{file} describes model_type {kind!r}; a Janus folder has 'janus' or 'multi_modality'.")
    # No release ties the text embeddings to lm_head, but the configuration class does by default.
    config.tie_word_embeddings = False
    config.text_config.tie_word_embeddings = False
    return config


def from_official(raw: dict[str, Any], file: Path) -> JanusConfig:
    """From the released `multi_modality` configuration; `file` is named in errors."""
    try:
        vision = raw["vision_config"]["params"]
        tower = vision["model_name"]
        codes = raw["gen_vision_config"]["params"]
        head = raw["gen_head_config"]["params"]
        aligner = raw["aligner_config"]["params"]
        generation_aligner = raw["gen_aligner_config"]["params"]
        language = {k: v for k, v in raw["language_config"].items() if k not in IGNORED_LANGUAGE_KEYS}
    except KeyError as error:
        raise ModelError(f"{file} has no {error} where an official Janus configuration has one.") from error
    if tower not in TOWERS:
        raise ModelError(f"{file} names the vision tower {tower!r}; known towers: {', '.join(TOWERS)}.")
    projectors = {p.get("projector_type") for p in (aligner, generation_aligner)}
    if projectors != {"mlp_gelu"}:
        raise ModelError(f"{file} has projectors {sorted(map(str, projectors))}; Janus-Pro has only 'mlp_gelu'.")
    sizes = TOWERS[tower]
    side = vision["image_size"] // sizes["patch_size"]
    return JanusConfig(
        vision_config={
            **sizes,
            "image_size": vision["image_size"],
            "projection_dim": aligner["n_embed"],
            "depth": aligner["depth"],
            "num_image_tokens": side * side,
        },
        text_config=language,
        vq_config={
            "num_embeddings": codes["image_token_size"],
            "embed_dim": codes["n_embed"],
            "projection_dim": head["image_token_embed"],
            "image_token_embed_dim": head["n_embed"],
            "num_hidden_layers": generation_aligner["depth"],
        },
        tie_word_embeddings=False,
    )


def visual_tokens(config: JanusConfig) -> int:
    """Tokens of one source picture in the sequence."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def codes_per_image(config: JanusConfig) -> int:
    """Codes of one generated picture (N)."""
    down = 2 ** (len(config.vq_config.channel_multiplier) - 1)
    return (config.vision_config.image_size // down) ** 2
