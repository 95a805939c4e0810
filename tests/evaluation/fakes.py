"""A model that answers from the brightness of a picture, and the shards it is asked about."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megaunigame.errors import DataError
from megaunigame.evaluation.run import run_evaluation
from megaunigame.evaluation.suites.base import Suite
from megaunigame.step.inputs import IGNORE, GenerateInputs, GenerateOutput, PassInputs, UnderstandInputs, UnderstandOutput
from megaunigame.step.requests import GENERATE
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.data.shard_files import encoded, talk, write_tar
from tests.passes import pass_inputs
from tests.worlds import on_ranks

END = 1
SIDE = 8
TEXTS = ["how light is 3 ?", "what color is it ? red", "a dark bright thing"] * 3
"""What the questions and captions of `bright_dark` are like."""


class FakeProcessor:
    """Characters are tokens; every row starts with one token that stands for the picture."""

    image_size = SIDE

    def __init__(self, max_length: int = 10_000):
        self.max_length = max_length

    def collate(self, plan, pass_name, rows, terms, keys) -> PassInputs:
        assert len(rows) == len(terms) == len(keys) == plan.rows(pass_name)
        lines = [self._line(row) for row in rows]
        size = max(len(line) for line in lines)
        stacked = torch.tensor([line + [(0, IGNORE, 0)] * (size - len(line)) for line in lines])  # (B, S, 3)
        tokens, labels, segments = stacked.unbind(-1)
        given = {
            "terms": torch.tensor(terms),
            "images": torch.stack([self._source(row) for row in rows])[:, None] / 127.5 - 1,
            "image_valid": torch.ones(len(rows), 1, dtype=torch.bool),
            "keys": list(keys),
        }
        if pass_name == GENERATE:
            counts = torch.tensor([0.0 if row is None else 1.0 for row in rows])
            targets = [torch.zeros(3, SIDE, SIDE) if row is None else row.target for row in rows]
            given |= {"counts": counts, "targets": torch.stack(targets) / 127.5 - 1}
            return pass_inputs(GenerateInputs, tokens, tokens != 0, **given)
        return pass_inputs(UnderstandInputs, tokens, tokens != 0, labels=labels, segments=segments, **given)

    def _line(self, row) -> list[tuple[int, int, int]]:
        line = [(2, IGNORE, 0)]
        if isinstance(row, GenerateRow):
            return line + [(ord(c), IGNORE, 0) for c in row.prompt]
        for number, (question, answer) in enumerate(row.turns if row else [], start=1):
            said = [*map(ord, answer), END]
            turn = [(ord(c), IGNORE, number) for c in question] + [(token, token, number) for token in said]
            if len(line) + len(turn) > self.max_length:
                break
            line += turn
        return line

    def _source(self, row) -> Tensor:
        if isinstance(row, UnderstandRow) and row.images:
            return row.images[0].float()
        if isinstance(row, GenerateRow) and row.source is not None:
            return row.source.float()
        return torch.zeros(3, SIDE, SIDE)

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(chr(t) for t in tokens if t > 2)


class FakeModel(nn.Module):
    """Says `bright` or `dark` after the mean of the picture, and `no` to every question with "?" in it twice.

    The tokenizer keeps the mean brightness. `sample` reconstructs the source, or draws white for "bright" prompts.
    Every call is recorded, as (name, rows).
    """

    leave_point = staticmethod(lambda: None)

    def __init__(self, processor: FakeProcessor | None = None):
        super().__init__()
        self.processor = processor or FakeProcessor()
        self.frozen = nn.Dropout().eval()
        self.calls: list[tuple[str, int]] = []

    def forward(self, inputs: PassInputs, predict: bool = False) -> UnderstandOutput | GenerateOutput:
        assert not torch.is_grad_enabled() and not self.training
        self.calls.append((inputs.pass_name, len(inputs.tokens)))
        brightness = inputs.images.mean(dim=(1, 2, 3, 4))
        if isinstance(inputs, GenerateInputs):
            wanted = (inputs.targets.mean(dim=(1, 2, 3)) > 0).float()
            says_bright = torch.tensor([float("bright" in self.processor.text(t.tolist())) for t in inputs.tokens])
            return GenerateOutput((wanted - says_bright).abs() * inputs.counts, brightness, brightness)
        predictions = torch.full_like(inputs.labels, 3)
        for row in range(len(inputs.labels)):
            for turn in inputs.segments[row].unique():
                labeled = ((inputs.labels[row] != IGNORE) & (inputs.segments[row] == turn)).nonzero().squeeze(1)
                said = [*map(ord, "bright" if brightness[row] > 0 else "dark"), END] + [3] * len(labeled)
                predictions[row, labeled] = torch.tensor(said[: len(labeled)], dtype=torch.int64)
        wrong = ((predictions != inputs.labels) & (inputs.labels != IGNORE)).sum(1).float()
        return UnderstandOutput(loss_sum=wrong, predictions=predictions if predict else None)

    def predict(self, inputs: PassInputs) -> Tensor:
        return self(inputs, predict=True).predictions

    def encode_target(self, pixels: Tensor) -> Tensor:
        self.calls.append(("encode_target", len(pixels)))
        return ((pixels.mean(dim=(1, 2, 3)) + 1) * 8).round().long()[:, None]

    def decode_target(self, target: Tensor) -> Tensor:
        self.calls.append(("decode_target", len(target)))
        return (target[:, :, None, None].float() / 8 - 1).expand(-1, 3, SIDE, SIDE)

    def sample(self, inputs: GenerateInputs, *, guidance: float, temperature: float, generator: torch.Generator) -> Tensor:
        self.calls.append(("sample", len(inputs.tokens)))
        noise = 0.01 * torch.rand(len(inputs.tokens), 3, SIDE, SIDE, generator=generator)
        prompts = [self.processor.text(tokens.tolist()) for tokens in inputs.tokens]
        drawn = torch.tensor([0.9 if "bright" in prompt else -0.9 for prompt in prompts])[:, None, None, None]
        again = torch.tensor(["again" in prompt for prompt in prompts])[:, None, None, None]
        return torch.where(again, inputs.images[:, 0], drawn + noise)


def picture(level: int) -> np.ndarray:
    """(8, 8, 3) uint8: gray of that level, with some texture."""
    texture = np.random.default_rng(level).integers(-8, 9, (SIDE, SIDE, 3))
    return (level + texture).clip(0, 255).astype(np.uint8)


OTHER_TURNS = ("what color is it ?", "red"), ("describe the image .", "a long text")


def bright_dark(count: int) -> list[tuple[np.ndarray | None, dict[str, Any]]]:
    """Samples whose brightness is asked for twice: a kind the model knows, and one whose answer never fits."""
    samples = []
    for i in range(count):
        answer = "bright" if i % 3 else "dark"
        meta = {
            "conversations": talk((f"<image>\nhow light is {i} ?", answer), *OTHER_TURNS),
            "kinds": ["light", "color", "description"],
            "caption": f"a {answer} thing",
            "objects": [
                {"color": "red", "shape": "cube", "x": 0.1, "y": 0.5},
                {"color": "blue", "shape": "cone", "x": 0.8, "y": 0.5},
            ],
        }
        samples.append((picture(200 if i % 3 else 50), meta))
    return samples


def write_tars(folder: Path, samples: Sequence[tuple[np.ndarray | None, dict[str, Any]]], per_shard: int = 4) -> str:
    """Plain tars, as any WebDataset tool writes them."""
    for shard, start in enumerate(range(0, len(samples), per_shard)):
        members = []
        for i, (image, meta) in enumerate(samples[start : start + per_shard], start=start):
            members.append((f"s{i:04d}.json", json.dumps(meta).encode()))
            members += [(f"s{i:04d}.png", encoded(image))] if image is not None else []
        write_tar(folder / f"data-{shard:06d}.tar", members)
    return str(folder)


def timeless(result: dict) -> dict:
    return {name: value for name, value in result.items() if name != "seconds"}


def evaluated(models: Sequence[nn.Module], suites: dict[str, Suite], folder: Path, step: int = 0) -> dict:
    """The result of an evaluation on one rank for each of `models`: equal on all ranks, apart from seconds."""
    # Ranks are processes: each has its own index, with its own open files.
    own = [copy.deepcopy(suites) for _ in models]
    results = on_ranks(len(models), lambda world: run_evaluation(models[world.rank], own[world.rank], world, step, folder))
    for label, expected in results[0]["suites"].items():
        assert all(timeless(result["suites"][label]) == timeless(expected) for result in results)
    return results[0]


class CuttingProcessor(FakeProcessor):
    """Says of every row that its text was cut."""

    def collate(self, plan, pass_name, rows, terms, keys) -> PassInputs:
        inputs = super().collate(plan, pass_name, rows, terms, keys)
        inputs.cut = torch.ones(len(rows), dtype=torch.bool)
        return inputs


class FailingProcessor(FakeProcessor):
    """Refuses one sample."""

    def collate(self, plan, pass_name, rows, terms, keys) -> PassInputs:
        if "s0001" in keys:
            raise DataError("Sample s0001 does not fit.")
        return super().collate(plan, pass_name, rows, terms, keys)
