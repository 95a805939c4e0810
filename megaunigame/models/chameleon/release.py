"""The original release of Chameleon, read as it is: `models/7b/` next to `tokenizer/`.

The language model is in one file per rank of model parallelism, each with a part of every matrix. `ReleaseFiles` shows them as
one checkpoint with Hugging Face keys, a tensor at a time; the mapping is that of transformers' conversion script.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.chameleon.release_settings import PARAMS, read_params, read_vqgan
from megaunigame.models.chameleon.text_tokenizer import BOS, EOS, PAD, TEXT_TOKENIZER, read_release_tokenizer, vocabulary_map
from megaunigame.models.weights.tensor_files import TensorFiles

MATRICES = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "tok_embeddings.weight": ("embed_tokens.weight", 1),
    "output.weight": ("lm_head.weight", 0),
}
"""Released name -> Hugging Face name, and the dimension along which the files have parts of it."""
VECTORS = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "norm.weight": "norm.weight",
}
"""The same in every file."""
HEAD_NORMS = {
    f"attention.{letter}_normalization.{kind}": f"self_attn.{letter}_norm.{kind}"
    for letter in "qk"
    for kind in ("weight", "bias")
}
"""One vector (head dimension,) per file, for all its heads."""
OF_LAYER = re.compile(r"(layers\.\d+\.)?(.+)")
MODEL = "model."
DDCONFIG = {
    "double_z": "double_latent",
    "z_channels": "latent_channels",
    "resolution": "resolution",
    "in_channels": "in_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
"""Name in vqgan.yaml -> transformers' name."""
LONG_BASE, LONG, SHORT = 10000.0, 16384, 4096
"""A rotary base above the first means as many positions as the second, else the third."""


def is_release(folder: Path) -> bool:
    """Whether `folder` is the `models/7b` of an original release."""
    return (folder / PARAMS).is_file()


class ReleaseFolder:
    """Where the files of a release are. Raises ModelError for one that is missing."""

    def __init__(self, folder: Path):
        self.folder = folder
        inside = folder / "tokenizer"
        self.tokenizer = inside if inside.is_dir() else folder.parent.parent / "tokenizer"
        for name in ("vqgan.ckpt", "vqgan.yaml", TEXT_TOKENIZER):
            if not (self.tokenizer / name).is_file():
                raise ModelError(
                    f"{self.tokenizer / name} is missing. The release has a folder tokenizer next to models; keep it there, "
                    f"or copy it to {inside}."
                )
        shards = sorted(folder.glob("consolidated*.pth"))
        if not shards:
            raise ModelError(f"No weights in {folder}. The release has consolidated.00.pth there, or one file for each rank.")
        self.shards = [TensorFiles([shard]) for shard in shards]

    @cached_property
    def params(self) -> dict[str, Any]:
        """Settings of the language model, flat."""
        return read_params(self.folder)

    @cached_property
    def vqgan(self) -> dict[str, Any]:
        """Settings of the image tokenizer."""
        return read_vqgan(self.tokenizer / "vqgan.yaml")

    def text_tokenizer(self) -> PreTrainedTokenizerFast:
        return read_release_tokenizer(self.tokenizer / TEXT_TOKENIZER)

    @cached_property
    def heads(self) -> tuple[int, int]:
        """Heads of queries, and of keys and values."""
        return self.params["n_heads"], self.params.get("n_kv_heads") or self.params["n_heads"]


def release_config(release: ReleaseFolder) -> ChameleonConfig:
    """From params.json and vqgan.yaml; sizes that the release leaves to its code are those of the weights.

    Raises ModelError for a setting that is missing or illegal.
    """
    files, vocabulary = ReleaseFiles(release), release.text_tokenizer().get_vocab()
    try:
        params, vqgan = release.params, release.vqgan
        vq = {"embed_dim": vqgan["embed_dim"], "num_embeddings": vqgan["n_embed"]}
        vq |= {ours: vqgan["ddconfig"][theirs] for theirs, ours in DDCONFIG.items()}
        base = float(params.get("rope_theta") or LONG_BASE)
        return ChameleonConfig(
            vocab_size=files.shape("model.embed_tokens.weight")[0],
            hidden_size=params["dim"],
            intermediate_size=files.shape("model.layers.0.mlp.gate_proj.weight")[0],
            num_hidden_layers=params["n_layers"],
            num_attention_heads=release.heads[0],
            num_key_value_heads=release.heads[1],
            rms_norm_eps=params["norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": base},
            max_position_embeddings=LONG if base > LONG_BASE else SHORT,
            model_parallel_size=params["model_parallel_size"],
            swin_norm=params["swin_norm"],
            vq_config=vq,
            vocabulary_map=vocabulary_map(vocabulary, vq["num_embeddings"]),
            **{f"{name}_token_id": vocabulary[token] for name, token in {"bos": BOS, "eos": EOS, "pad": PAD}.items()},
        )
    except KeyError as error:
        raise ModelError(f"The release in {release.folder} has no {error} in its settings or weights.") from error


class ReleaseFiles(TensorFiles):
    """Weights of a release under Hugging Face keys; those of the image tokenizer under their own."""

    def __init__(self, release: ReleaseFolder):
        super().__init__([release.tokenizer / "vqgan.ckpt"])
        self.release, self.shards = release, release.shards
        for shard in self.shards[1:]:
            if shard.index.keys() != self.shards[0].index.keys():
                raise ModelError(f"{shard.files[0]} has other keys than {self.shards[0].files[0]}. Copy the release again.")

    @cached_property
    def stored(self) -> dict[str, tuple[str, str]]:
        """Hugging Face key -> key in every shard, and its name without the layer; unknown keys keep theirs."""
        found = {}
        for key in self.shards[0].index:
            layer, name = OF_LAYER.fullmatch(key).groups("")  # type: ignore[union-attr]
            ours = MATRICES[name][0] if name in MATRICES else {**VECTORS, **HEAD_NORMS}.get(name)
            prefix = "" if ours == "lm_head.weight" else MODEL + layer
            found[key if ours is None else prefix + ours] = (key, name)
        return found

    @cached_property
    def index(self) -> dict[str, Path]:  # type: ignore[override]
        """Key of every tensor -> a file it is in."""
        tokenizer = {key: self.files[0] for key in self._open(self.files[0])}
        return {**dict.fromkeys(self.stored, self.shards[0].files[0]), **tokenizer}

    def shape(self, key: str) -> torch.Size:
        if key not in self.stored:
            return super().shape(key)
        theirs, name = self.stored[key]
        shape = list(self.shards[0].shape(theirs))
        if name in MATRICES:
            along = MATRICES[name][1]
            shape[along] = sum(shard.shape(theirs)[along] for shard in self.shards)
        return torch.Size([self._heads(name), *shape] if name in HEAD_NORMS else shape)

    def kind(self, key: str) -> str:
        return self.shards[0].kind(self.stored[key][0]) if key in self.stored else super().kind(key)

    def read(self, key: str, rows: slice = slice(None)) -> Tensor:
        if key not in self.stored:
            return super().read(key, rows)
        theirs, name = self.stored[key]
        parts = [shard.read(theirs) for shard in self.shards]
        if name in VECTORS:
            return torch.stack(parts).mean(0)[rows]
        if name in HEAD_NORMS:
            own = torch.stack([_halves(part, 1) for part in parts])
            return own.repeat_interleave(self._heads(name) // len(parts), 0)[rows]
        whole = torch.cat(parts, MATRICES[name][1])
        if name in ("attention.wq.weight", "attention.wk.weight"):
            whole = _halves(whole, self._heads(name))
        return whole[rows]

    def _heads(self, name: str) -> int:
        """Of the projection or norm `name`: heads of keys where it is one of keys."""
        return self.release.heads[name.startswith(("attention.wk", "attention.k_"))]


def _halves(weight: Tensor, heads: int) -> Tensor:
    """(heads * d, ...) with the two numbers that rotate together next to each other -> half a head apart, as rotated here."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
