"""Which weights a replay takes, how it builds the model, and what it says of rows that draw random numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megaunigame.checkpoint.manifest import MANIFEST, TRAIN_STATE, Manifest
from megaunigame.diagnosis.replay import checkpoint_before, load, replay
from megaunigame.diagnosis.text import row_line, summary
from megaunigame.storage.pending import PendingFile
from megaunigame.training.kept_rows import KeptPass, KeptRow, KeptStep
from tests.step.test_kept_inputs import GENERATE


def save(run, step: int, saves: int):
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    files = {name: PendingFile(name, content=b"{}").write(folder) for name in (TRAIN_STATE, "a.bin")}
    (folder / MANIFEST).write_text(Manifest(step, 1, "", files, saves=saves).as_json())
    return folder


@pytest.mark.fault(
    "a file of the newest checkpoint is truncated, and its rows are replayed", does="an older, complete one is taken", lost=""
)
def test_the_weights_are_those_of_a_complete_checkpoint(tmp_path):
    assert checkpoint_before(tmp_path, 5) is None
    older, newer = save(tmp_path, 10, 1), save(tmp_path, 20, 2)
    assert [checkpoint_before(tmp_path, step) for step in (10, 11, 20, 21)] == [None, older, older, newer]
    (newer / "a.bin").write_bytes(b"{")
    assert checkpoint_before(tmp_path, 21) == older


def test_a_run_that_went_back_is_not_replayed_with_what_it_left(tmp_path):
    save(tmp_path, 10, 1)
    save(tmp_path, 20, 2)
    back = save(tmp_path, 15, 3)
    assert checkpoint_before(tmp_path, 30) == back


class Model(nn.Module):
    def __init__(self, *, draws: bool):
        super().__init__()
        self.weight, self.draws = nn.Parameter(torch.ones(())), draws

    def forward(self, inputs):
        noise = torch.rand(len(inputs.tokens)) if self.draws else torch.ones(len(inputs.tokens))
        return SimpleNamespace(loss_sum=self.weight * noise)


@pytest.mark.parametrize("draws", [True, False])
def test_a_row_with_a_random_draw_says_so(draws):
    row = KeptRow("pixel", "generation", "a", "train", 17, "data-000001.tar", "nan", True)
    kept = KeptStep(12, 3, 4, 5, [KeptPass(0, GENERATE, [row])])
    results = list(replay(Model(draws=draws), kept))
    assert [result.draws for result in results] == [draws]
    assert row_line(results[0]).endswith("finite, with another random draw than in the run" if draws else " finite")
    told = "1 of them depend on a random draw" in summary(results)
    assert told == draws and ("no row is broken by itself" in summary(results)) != draws


@pytest.mark.parametrize(("asked", "built"), [("flash_attention_3", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_attention_that_needs_a_gpu_is_replaced(tmp_path, asked, built):
    class Built(Exception):
        pass

    class Family:
        def open_processor(self, path, max_length):
            return None

        def build(self, path, processor, attention, gradient_checkpointing):
            raise Built(attention)

    model = SimpleNamespace(attention=asked, max_length=8)
    recipe = SimpleNamespace(model=model, engine=SimpleNamespace(precision="fp32"))
    with pytest.raises(Built, match=f"^{built}$"):
        load(Family(), recipe, tmp_path, None)
