"""A tiny CLIP for the scenes: the plausibility of a decoded picture is its similarity to the source or to the caption.

Two contrastive losses share one batch. Pictures against captions: half of the pictures sharp, half through the image
tokenizer, so that CLIP knows its blur. Sharp pictures against their reconstruction, with other scenes and reconstructions
with some random codes as negatives: similarity then falls with every wrong code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.tiny_world.loop import LoopSettings, Stage, bf16_if_fast, generator_at, train
from megaunigame.tiny_world.scenes import Scenes
from megaunigame.tiny_world.sizes import CODES, IMAGE_SIZE, PATCH_SIZE, VOCABULARY
from megaunigame.tiny_world.tokenizer_training import decode, reconstruct

BATCH = 64
THROUGH = 4000
"""Number of scenes, the first ones, that are also used after reconstruction by the tokenizer."""
CORRUPTED = (0.05, 0.6)
"""Smallest and largest fraction of random codes in a corrupted reconstruction."""
IMAGE_SCALE = 10.0
"""Inverse temperature of picture against picture. Not learned: a sharper one would leave no cosines between 0.9 and 1
for small changes, which a threshold has to separate."""
BRIGHTNESS, NOISE = 0.1, 0.02
"""Largest brightness shift of a picture and standard deviation of the noise on its values, in units of [-1, 1]."""
CONTEXT = 32
"""Text tokens; the longest caption has 19, the longest question 16."""
CLIP_FOLDER = "clip"
RETRIEVAL = 32
"""Number of captions to choose from in the retrieval measure."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def clip_config(eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
    """What open_clip reads from open_clip_config.json. Mean and deviation 0.5: the network sees pictures in [-1, 1]."""
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "width": 128, "layers": 3, "head_width": 32}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 64, "layers": 2, "heads": 2}
    ends = {"pool_type": "eos", "eos_id": eos_token_id, "pad_id": pad_token_id, "hf_tokenizer_name": CLIP_FOLDER}
    return {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": vision | {"mlp_ratio": 3.0},
            "text_cfg": text | ends | {"mlp_ratio": 3.0},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def clip_tokenizer(text_folder: Path) -> PreTrainedTokenizerFast:
    """The text tokenizer of the tiny Janus; every text ends with the end-of-sentence token, where CLIP pools."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(text_folder))
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer.chat_template = None
    tokenizer.padding_side = "right"  # prompts of Janus are padded on the left
    return tokenizer


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(T, CONTEXT) int64."""
    padded = tokenizer(texts, max_length=CONTEXT, padding="max_length", truncation=True, return_tensors="pt")
    return padded["input_ids"]


def with_random_codes(codes: Tensor, fraction: Tensor, generator: torch.Generator) -> Tensor:
    """`codes` (B, N) with round(fraction[b] N) positions of row b replaced by uniformly drawn codes; fraction (B,) in 0..1."""
    rank = torch.rand(codes.shape, generator=generator).argsort(1).argsort(1)
    drawn = torch.randint(CODES, codes.shape, generator=generator)
    return torch.where(rank < (fraction * codes.shape[1]).round().unsqueeze(1), drawn, codes)


class ClipStage(Stage):
    """Pictures against captions, and sharp pictures against reconstructions, both as a choice among the batch."""

    name = "clip"
    module: CLIP

    def __init__(self, module: CLIP, scenes: Scenes, captions: Tensor, reconstructed: Tensor, corrupted: Tensor):
        self.module, self.scenes, self.captions = module, scenes, captions
        self.reconstructed, self.corrupted = reconstructed, corrupted

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        half = BATCH // 2
        other = torch.randint(len(self.scenes), (half,), generator=generator)
        paired = torch.randperm(len(self.reconstructed), generator=generator)[:half]
        pictures = [
            self.scenes.batch("rgb", other),
            self.reconstructed[paired].float(),
            self.scenes.batch("rgb", paired),
            self.corrupted[paired].float(),
        ]
        captions = self.captions[torch.cat([other, paired])]
        with bf16_if_fast():
            images = self.module.encode_image(perturbed(torch.cat(pictures), generator)).float()
            texts = self.module.encode_text(captions).float()
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        sharp_other, through, sharp, wrong = images.split(len(paired))

        logits = self.module.logit_scale.exp() * torch.cat([sharp_other, through]) @ texts.T
        same = (captions.unsqueeze(1) == captions).all(-1) & ~torch.eye(len(captions), dtype=torch.bool)
        logits = logits.masked_fill(same, -torch.inf)  # an equal caption of another scene is not a wrong answer
        right = torch.arange(len(captions))
        text_loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2

        likeness = IMAGE_SCALE * sharp @ torch.cat([through, wrong, sharp_other]).T
        image_loss = F.cross_entropy(likeness, right[: len(paired)])
        return text_loss + image_loss, {
            "text": float(text_loss.detach()),
            "retrieval": float((logits.argmax(1) == right).float().mean()),
            "through": float((sharp * through).detach().sum(1).mean()),
            "corrupted": float((sharp * wrong).detach().sum(1).mean()),
        }


def perturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) with random brightness and noise. Never mirrored: captions tell left from right."""
    shift = (2 * torch.rand(len(pictures), 1, 1, 1, generator=generator) - 1) * BRIGHTNESS
    noise = torch.randn(pictures.shape, generator=generator) * NOISE
    return (pictures + shift + noise).clamp(-1, 1)


def train_clip(scenes: Scenes, vq: ImageTokenizer, text_folder: Path, out: Path, loop: LoopSettings) -> CLIP:
    """Train (or continue) the CLIP and write `out`/clip: weights (float16), open_clip_config.json, tokenizer files."""
    tokenizer = clip_tokenizer(text_folder)
    config = clip_config(tokenizer.eos_token_id, tokenizer.pad_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(loop.seed)
        clip = CLIP(**config["model_cfg"])
    captions = text_ids(tokenizer, [meta["caption"] for meta in scenes.metas])
    reconstructed, codes = reconstruct(vq, scenes.batch("rgb", torch.arange(min(THROUGH, len(scenes)))))
    generator = generator_at(loop.seed + 1, 0)
    low, high = CORRUPTED
    fraction = low + (high - low) * torch.rand(len(codes), generator=generator)
    corrupted = decode(vq, with_random_codes(codes, fraction, generator))
    train(ClipStage(clip, scenes, captions, reconstructed.half(), corrupted.half()), loop, out)

    folder = out / CLIP_FOLDER
    tokenizer.save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return clip.eval()


@torch.no_grad()
def evaluate_clip(
    clip: CLIP,
    vq: ImageTokenizer,
    tokenizer: PreTrainedTokenizerFast,
    scenes: Scenes,
    pairs: Scenes | None = None,
    count: int = 512,
) -> dict[str, Any]:
    """Measures on the first `count` held-out scenes and on pairs of scenes (`data_prep scenes --split adversarial`).

    `retrieval`: fraction of pictures whose own caption is the likeliest among RETRIEVAL different ones. `cosine`: similarity of
    a decoded picture to its source and to a caption, as quantiles 5, 50 and 95 %. `accepted`: fraction of these at or above
    each of THRESHOLDS.
    """
    pixels = scenes.batch("rgb", torch.arange(min(count, len(scenes))))
    metas = scenes.metas[: len(pixels)]
    through, codes = reconstruct(vq, pixels)
    source, reconstruction = embed(clip, pixels), embed(clip, through)
    texts = F.normalize(clip.encode_text(text_ids(tokenizer, [meta["caption"] for meta in metas])), dim=-1)
    cosines = {
        "through the tokenizer": source * reconstruction,
        "unrelated picture": source * reconstruction.roll(1, 0),
        "caption": reconstruction * texts,
        "unrelated caption": reconstruction * texts.roll(1, 0),
    }
    for percent in (5, 10, 25, 50):
        fraction = torch.full((len(codes),), percent / 100)
        wrong = decode(vq, with_random_codes(codes, fraction, generator_at(percent, 0)))
        cosines[f"{percent} % random codes"] = source * embed(clip, wrong)
    if pairs is not None:
        cosines |= pair_products(clip, vq, pairs)
    values = {name: products.sum(1) for name, products in cosines.items()}
    at = torch.tensor([0.05, 0.5, 0.95])
    return {
        "retrieval": {
            "real": retrieval(source, texts, metas),
            "through the tokenizer": retrieval(reconstruction, texts, metas),
        },
        "cosine": {name: [round(q, 3) for q in value.quantile(at).tolist()] for name, value in values.items()},
        "accepted": {
            name: {tau: round(float((value >= tau).float().mean()), 3) for tau in THRESHOLDS} for name, value in values.items()
        },
    }


def pair_products(clip: CLIP, vq: ImageTokenizer, pairs: Scenes) -> dict[str, Tensor]:
    """Kind of change -> (P, D): elementwise products of a picture and the decoded picture of its partner, with one change."""
    pixels = pairs.batch("rgb", torch.arange(len(pairs)))
    products = embed(clip, pixels[0::2]) * embed(clip, reconstruct(vq, pixels[1::2])[0])
    changed = [meta["changed"] for meta in pairs.metas[0::2]]
    return {f"{kind} changed": products[torch.tensor([kind == c for c in changed])] for kind in sorted(set(changed))}


def embed(clip: CLIP, pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, D) of unit length."""
    return torch.cat([F.normalize(clip.encode_image(part), dim=-1) for part in pictures.split(128)])


def retrieval(images: Tensor, texts: Tensor, metas: list[dict]) -> float:
    """Fraction of images nearest to their own text among groups of RETRIEVAL different captions, in the order of the scenes."""
    groups: list[dict[str, int]] = [{}]
    for row, meta in enumerate(metas):
        if len(groups[-1]) == RETRIEVAL:
            groups.append({})
        groups[-1].setdefault(meta["caption"], row)
    full = [torch.tensor(list(group.values())) for group in groups if len(group) == RETRIEVAL]
    right = [(images[g] @ texts[g].T).argmax(1) == torch.arange(RETRIEVAL) for g in full]
    return float(torch.cat(right).float().mean())
