"""Drawn representations are compared with the true ones, between their copy and the truth of another sample."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from megaunigame.errors import ConfigError, UserError
from megaunigame.evaluation.suites.representations import DRAWN, TOKENIZER, UNRELATED, Representations
from megaunigame.settings import fill
from megaunigame.step.inputs import GenerateInputs
from megaunigame.step.requests import GENERATE
from tests.data.shard_files import encoded, write_shards
from tests.passes import pass_inputs
from tests.worlds import on_ranks

SIDE, COUNT = 8, 6


def fields(number: int) -> dict[str, bytes]:
    """The depth of sample n is flat but for a step in column n; its image says n."""
    depth = np.zeros((SIDE, SIDE), np.uint16)
    depth[:, number:] = 65535
    image = np.full((SIDE, SIDE, 3), 10 * number, np.uint8)
    return {"json": json.dumps({"caption": str(number)}).encode(), "png": encoded(image), "depth.png": encoded(depth)}


class Draughtsman:
    """Draws the right depth, one column too far to the left; its tokenizer loses the last column."""

    def __init__(self):
        self.processor = self
        self.leave_point = lambda: None

    def collate(self, plan, pass_name, rows, terms, keys):
        assert pass_name == GENERATE and plan.takes_images(GENERATE)
        zeros = torch.zeros(3, SIDE, SIDE)
        targets = torch.stack([zeros if row is None else row.target / 127.5 - 1 for row in rows])
        texts = [row.text for row in rows if row is not None]
        return pass_inputs(GenerateInputs, targets[:, 0, 0], targets=targets, texts=texts)

    def encode_target(self, pixels):
        return pixels

    def decode_target(self, target):
        return torch.cat([target[..., :-1], torch.full_like(target[..., -1:], -1)], dim=-1)

    def sample(self, inputs, *, guidance, temperature, generator):
        assert all(prompt == "the depth" for prompt, _ in inputs.texts)
        return torch.cat([inputs.targets[..., 1:], inputs.targets[..., -1:]], dim=-1)


@pytest.fixture
def shards(tmp_path):
    return str(write_shards(tmp_path / "shards", [COUNT], fields=fields))


@pytest.mark.parametrize("world_size", [1, 3])
def test_scores_are_those_of_a_known_draughtsman(shards, tmp_path, world_size):
    config = Representations.Config(shards=shards, prompts={"depth": "the depth"}, batch=2, pictures=2)

    def measure(world):
        return Representations(config).run(Draughtsman(), world, tmp_path / "pictures")

    for result in on_ranks(world_size, measure):
        columns_wrong = {
            # Sample 0 is white everywhere, so that moving it changes nothing.
            DRAWN: np.mean([0] + [1] * (COUNT - 1)),
            TOKENIZER: 1.0,
            UNRELATED: np.mean([abs(n - (n + COUNT // 2) % COUNT) for n in range(COUNT)]),
        }
        for name, wrong in columns_wrong.items():
            assert result["metrics"][f"depth/{name.replace(' ', '_')}"] == pytest.approx(1 - wrong / SIDE, abs=0.01), name
        assert [p["column"] for p in result["pictures"]] == ["source", "depth true", "depth drawn"] * 2
    assert (tmp_path / "pictures" / "contact-sheet.png").is_file()


def test_objects_are_scored_apart(tmp_path):
    """Objects cover the last two columns: there the draughtsman is wrong where the step is in column 6 or 7, no more."""

    def with_objects(number):
        ids = np.zeros((SIDE, SIDE), np.uint8)
        ids[:, -2:] = 1
        return fields(number) | ({"seg.png": encoded(ids)} if number else {})

    shards = str(write_shards(tmp_path / "shards", [COUNT], fields=with_objects))
    suite = Representations(Representations.Config(shards=shards, prompts={"depth": "the depth"}, batch=4, geometry="crop"))
    for result in on_ranks(2, lambda world: suite.run(Draughtsman(), world, tmp_path / "pictures")):
        metrics = result["metrics"]
        assert metrics["depth/objects/drawn"] == pytest.approx(1.0) and metrics["depth/drawn"] < 0.95
        assert metrics["depth/objects/through_tokenizer"] == pytest.approx(0.5)
        assert [row[0:3:2] for row in result["tables"][0]["rows"]] == [["depth", COUNT], ["depth, on objects", COUNT - 1]]


def test_missing_targets_and_missing_prompts_are_named(shards, tmp_path):
    wrong = Representations(Representations.Config(shards=shards, prompts={"segmentation": "regions"}))
    with pytest.raises(UserError, match=r"has no image or no seg.png"):
        on_ranks(1, lambda world: wrong.run(Draughtsman(), world, tmp_path))
    with pytest.raises(ConfigError, match="no prompts"):
        fill(Representations.Config, {"shards": shards}, "evaluation.suites.val")
    with pytest.raises(ConfigError, match=r"Did you mean 'depth'"):
        Representations(Representations.Config(shards=shards, prompts={"dept": "x"}))
