"""More training of a tiny Janus's picture decoder; every picture keeps its codes.

    python -m megaunigame.tiny_world.decoder --data shards --out runs/tiny_decoder

Encoder and codebook are frozen, so a language model that knows the codes needs no retraining: its pictures get sharper edges.
Writes the model with the new decoder to OUT/janus. `--data` holds `train` and `val` scenes; started again, it continues.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megaunigame.errors import ModelError
from megaunigame.judges.scenes import Oracle
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.janus.keys import IMAGE_TOKENIZER
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.tiny_world.loop import LoopSettings, Stage, bf16_if_fast, train
from megaunigame.tiny_world.oracle_training import evaluate_oracle
from megaunigame.tiny_world.scenes import Scenes, load_scenes
from megaunigame.tiny_world.sizes import vq_config
from megaunigame.tiny_world.tokenizer_training import MIX, decibels, draw_mix, evaluate_tokenizer

WEIGHTS_FILE = "model.safetensors"
WEIGHTS = Path(__file__).parent / "weights"
SHIPPED, ORACLE = WEIGHTS / "janus", WEIGHTS / "oracle.safetensors"
STEPS, LEARNING_RATE = 2000, 8e-4
ABSOLUTE_WEIGHT, EDGE_WEIGHT = 0.2, 0.4
"""Of the absolute error, and of that of the differences between neighboring pixels. The squared error alone (weight 1) blurs
every edge whose place the codes do not tell exactly."""
OBJECT_WEIGHT = 4.0
SCENES = 12_000
"""The first scenes of `train` are used; in memory they take 0.7 GB."""


class DecoderStage(Stage):
    """Decoding of the codes of a fixed mix of picture kinds."""

    name = "decoder"
    module: ImageTokenizer

    def __init__(self, module: ImageTokenizer, scenes: Scenes):
        self.module, self.scenes = module, scenes

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pixels, weight = draw_mix(self.scenes, OBJECT_WEIGHT, generator)
        codes = self.module.encode(pixels)
        with bf16_if_fast():
            output = self.module.decode_embeddings(self.module.embed(codes)).float()
        error = output - pixels
        loss = (
            (weight * error.square()).mean()
            + ABSOLUTE_WEIGHT * (weight * error.abs()).mean()
            + EDGE_WEIGHT * edge_error(error, weight)
        )
        return loss, {"psnr_rgb": decibels(output[: MIX["rgb"]].detach(), pixels[: MIX["rgb"]])}


def edge_error(error: Tensor, weight: Tensor) -> Tensor:
    """(): mean absolute error of the differences between neighbors, to the right and below; error (B, 3, H, W), weight
    (B, 1, H, W)."""
    right, below = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return (weight[..., 1:] * right.abs()).mean() + (weight[..., 1:, :] * below.abs()).mean()


def read_image_tokenizer(model: Path) -> ImageTokenizer:
    """The image tokenizer of a tiny Janus folder, float32, with all but its decoder frozen.

    Raises ModelError when `model` has no weights, or those of a model of another size."""
    if not (model / WEIGHTS_FILE).is_file():
        raise ModelError(f"No {WEIGHTS_FILE} in {model}. Give the folder of a tiny Janus, for example --model {SHIPPED}")
    found = {
        name.removeprefix(IMAGE_TOKENIZER): value.float() for name, value in _tokenizer_of(load_file(model / WEIGHTS_FILE))
    }
    vq = ImageTokenizer(vq_config())
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in vq.state_dict().items()}:
        raise ModelError(f"{model} is not a tiny Janus: its image tokenizer has other layers. Give another --model.")
    vq.load_state_dict(found)
    vq.requires_grad_(False)
    for part in (vq.post_quant_conv, vq.decoder):
        part.requires_grad_(True)
    return vq


def _tokenizer_of(weights: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in weights.items() if name.startswith(IMAGE_TOKENIZER)]


def write_model(model: Path, vq: ImageTokenizer, out: Path) -> None:
    """Copy the folder `model` to `out`, with the decoder of `vq` in the dtype of the old one."""
    shutil.copytree(model, out, dirs_exist_ok=True)
    weights = load_file(model / WEIGHTS_FILE)
    new = {IMAGE_TOKENIZER + name: value for name, value in vq.state_dict().items()}
    for name, old in _tokenizer_of(weights):
        if not torch.equal(new[name], old.float()):  # frozen parts stay as they are stored
            weights[name] = new[name].to(old.dtype).contiguous()
    save_file(weights, out / WEIGHTS_FILE, {"format": "pt"})


def numbers_of(vq: ImageTokenizer, scenes: Scenes) -> dict[str, Any]:
    """PSNR per kind of picture, and objects that the oracle finds in real pictures and in decoded ones."""
    vq.eval()
    found = evaluate_oracle(Oracle.load(ORACLE), vq, scenes)
    return {"tokenizer": evaluate_tokenizer(vq, scenes), "oracle": {name: asdict(scores) for name, scores in found.items()}}


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__, "python -m megaunigame.tiny_world.decoder")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of a tiny Janus; default: the shipped one")
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the state of the training and the model are written")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default {STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    val = load_scenes(options.data / "val", 256)
    numbers = {"before": numbers_of(read_image_tokenizer(options.model), val)}
    vq = read_image_tokenizer(options.model).train()
    loop = LoopSettings(options.steps, LEARNING_RATE, options.seed)
    train(DecoderStage(vq, load_scenes(options.data / "train", SCENES)), loop, options.out)
    write_model(options.model, vq, options.out / "janus")
    numbers["after"] = numbers_of(read_image_tokenizer(options.out / "janus"), val)  # as stored
    (options.out / "decoder.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
