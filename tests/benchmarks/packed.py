"""What padding costs: training steps of a narrow Janus on rows of LLaVA's lengths, padded and packed.

    python -m tests.benchmarks.packed [--rows 16] [--layers 4] [--width 256] [--steps 5] [--dtype float32]

An understand row has a picture of 576 visual tokens, a question, and an answer of a log-normal number of tokens (median 170,
sigma .95), at most 2,048 together; a generate row a prompt of 5 to 80 tokens, padded in front, before its 576 codes. Each step
has other rows, the same for both models, which take turns in one process: ratios are of the medians of CPU seconds, forward and
backward, the vision tower (narrow) included and the image tokenizer not. Losses are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from megaunigame.models.janus import Janus
from megaunigame.models.janus.sizes import TINY, write
from megaunigame.step.inputs import PassInputs, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand

TARGET = 1.6
"""Smallest ratio of understand steps that the design asks for."""
LONGEST, SIDE, CODES, HEAD = 2048, 384, 576, 64
PICTURE = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)


def built(folder: Path, options: argparse.Namespace) -> Janus:
    """A model of random weights, the same each time."""
    processor = Janus.open_processor(str(folder), max_length=LONGEST)
    model = Janus.build(str(folder), processor, attention="sdpa", gradient_checkpointing=False)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.to(getattr(torch, options.dtype)).train()


def write_shape(folder: Path, options: argparse.Namespace) -> None:
    heads = options.width // HEAD
    text = {
        **{"hidden_size": options.width, "intermediate_size": options.width * 11 // 4, "num_hidden_layers": options.layers},
        **{"num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4), "max_position_embeddings": LONGEST},
    }
    picture = {"projection_dim": options.width, "num_image_tokens": CODES}
    vision = {"image_size": SIDE, "patch_size": 16, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = {"channel_multiplier": [1] * 5, "projection_dim": options.width, "image_token_embed_dim": options.width}
    write(TINY, {"text_config": text, "vision_config": {**vision, **picture}, "vq_config": tokenizer}, folder)


def rows(model: Janus, pass_name: str, count: int, generator: torch.Generator) -> PassInputs:
    """Inputs of one step."""
    if pass_name == UNDERSTAND:
        answers = ((torch.randn(count, generator=generator) * 0.95).exp() * 170).long().clamp(1, LONGEST - 648).tolist()
        return understand(model, *(UnderstandRow([PICTURE], [("what " * 25, "a " * number)]) for number in answers))
    prompts = torch.randint(5, 80, (count,), generator=generator).tolist()
    return generate(model, *(GenerateRow("a " * number, PICTURE) for number in prompts))


def loss_of(model: Janus, inputs: PassInputs) -> Tensor:
    if isinstance(inputs, UnderstandInputs):
        return model(inputs).loss_sum.sum()
    codes = torch.arange(CODES).expand(len(inputs.tokens), -1) % 256
    return model.predict_codes(inputs, codes, False).loss_sum.sum()  # type: ignore[arg-type]


def measure(pass_name: str, models: dict[str, Janus], options: argparse.Namespace) -> float:
    """Prints a line; the ratio of the medians, padded to packed."""
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    shares = []
    for step in range(options.steps + 1):
        inputs = rows(models["padded"], pass_name, options.rows, generator)
        losses = []
        for name, model in models.items():
            model.zero_grad()
            start = time.process_time()
            loss = loss_of(model, inputs)
            loss.backward()
            if step:  # the first is a warm-up
                seconds[name].append(time.process_time() - start)
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) <= (1e-5 if options.dtype == "float32" else 1e-2) * losses[0], losses
        more = 0 if pass_name == UNDERSTAND else CODES - 1
        shares.append((sum(inputs.lengths) / options.rows + more) / (inputs.tokens.shape[1] + more))
    padded, packed = (statistics.median(each) for each in seconds.values())
    print(
        f"{pass_name:<10}  padded {padded:6.2f} s  packed {packed:6.2f} s  ratio {padded / packed:.2f}; "
        f"share of padded positions that are tokens {statistics.mean(shares):.2f}",
        flush=True,
    )
    return padded / packed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        write_shape(Path(folder), options)
        models = {"padded": built(Path(folder), options), "packed": built(Path(folder), options)}
    models["packed"].pack_rows(LONGEST * options.rows)
    shape = f"{options.layers} layers of width {options.width}, {options.rows} rows, {options.dtype}, one thread"
    print(f"{shape}; medians of {options.steps} steps")
    ratios = {name: measure(name, models, options) for name in (UNDERSTAND, GENERATE)}
    return 0 if ratios[UNDERSTAND] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
