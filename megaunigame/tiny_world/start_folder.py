"""The start folder of joint training: trained image tokenizer and tower, random language model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.janus.folder import random_state, write_folder
from megaunigame.tiny_world.sizes import janus_config
from megaunigame.tiny_world.tokenizer_training import VQ_FILE
from megaunigame.tiny_world.tower_warmup import TOWER_FILE

TEXT_FOLDER = "text"
START_FOLDER = "start"


def write_start_folder(out: Path, seed: int) -> dict[str, int]:
    """Assemble `out`/start from the parts text, vq and tower in `out`; returns the parameters per part, largest first.

    Raises ModelError when one of these is not finished.
    """
    for part, needed in (("text", f"{TEXT_FOLDER}/tokenizer.json"), ("vq", VQ_FILE), ("tower", TOWER_FILE)):
        if not (out / needed).is_file():
            raise ModelError(f"No {needed} in {out}. Make it with: launch/tiny_world.py --stage {part} --out {out}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(out / TEXT_FOLDER))
    config = janus_config(tokenizer)
    state = random_state(config, seed)
    state |= {f"model.vqmodel.{name}": value for name, value in load_file(out / VQ_FILE).items()}
    state |= {f"model.vision_model.{name}": value for name, value in load_file(out / TOWER_FILE).items()}
    # Code embeddings are trained, but from the codebook the model knows at once which codes look alike.
    state["model.generation_embeddings.weight"] = state["model.vqmodel.quantize.embedding.weight"].clone()
    write_folder(out / START_FOLDER, config, state, tokenizer)
    return parameters_per_part(state)


def parameters_per_part(state: dict[str, Tensor]) -> dict[str, int]:
    """Numbers of weights by the first two parts of their names, largest first, and their total."""
    counts: Counter[str] = Counter()
    for name, value in state.items():
        counts[".".join(name.split(".")[:2])] += value.numel()
    return dict(counts.most_common()) | {"total": counts.total()}
