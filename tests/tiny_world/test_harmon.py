"""The folder a tiny Harmon starts from."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.harmon import Harmon
from megaunigame.tiny_world.harmon import main
from tests.tiny_world.toy import toy_scenes


def test_the_start_folder_reads_scenes_as_latents_of_unit_scale(tmp_path, capsys):
    main(["--out", str(tmp_path / "start")])
    assert '"mar.encoder_blocks"' in capsys.readouterr().out
    model = Harmon.load(tmp_path / "start", max_length=320)
    latents = model.encode_target(toy_scenes(16, size=64).batch("rgb", torch.arange(16)))
    assert latents.shape == (16, 8, 8, 8) and 0.3 < latents.std().item() < 3
    blocks = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    of_blocks = model.encode_target(torch.nn.functional.interpolate(blocks, (64, 64)))
    assert of_blocks.std().item() == pytest.approx(1, rel=0.01)
    assert of_blocks.mean((0, 2, 3)).abs().max().item() < 0.01
    words = model.processor.tokenizer.encode("what color is the cube ?", add_special_tokens=False)
    assert len(words) == 6 and max(words) < model.config.llm.vocab_size
    main(["--out", str(tmp_path / "again")])
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("start", "again")]
    assert written[0] == written[1]
