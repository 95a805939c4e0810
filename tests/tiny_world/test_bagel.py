"""The folder a tiny BAGEL starts from."""

from __future__ import annotations

import torch

from megaunigame.models.bagel import Bagel
from megaunigame.tiny_world.bagel import main
from tests.tiny_world.toy import toy_scenes


def test_the_start_folder_reads_scenes_as_latents_of_unit_variance(tmp_path, capsys):
    main(["--out", str(tmp_path / "start")])
    assert '"model.layers"' in capsys.readouterr().out
    model = Bagel.load(tmp_path / "start", max_length=320)
    pictures = toy_scenes(16, size=64).batch("rgb", torch.arange(16))
    latents = model.encode_target(pictures)
    sampled = model.autoencoder.encode(pictures, torch.randn_like(latents))
    torch.testing.assert_close(sampled, latents, rtol=0, atol=1e-3)
    assert latents.shape == (16, 4, 16, 16) and 0.3 < latents.std() < 3 and abs(latents.mean()) < 1
    words = model.processor.tokenizer.encode("what color is the cube ?", add_special_tokens=False)
    assert len(words) == 6 and max(words) < model.config.text.vocab_size
    main(["--out", str(tmp_path / "again")])
    assert (tmp_path / "start/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
