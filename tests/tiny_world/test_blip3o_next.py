"""The folder a tiny BLIP3o-NEXT starts from."""

from __future__ import annotations

import torch

from megaunigame.models.blip3o_next import Blip3oNext
from megaunigame.tiny_world.autoencoder_training import read_autoencoder
from megaunigame.tiny_world.blip3o_next import main
from megaunigame.tiny_world.openuni import SHIPPED
from tests.tiny_world.toy import toy_scenes


def test_the_start_folder_reads_scenes_as_different_codes_and_keeps_their_pictures(tmp_path, capsys):
    main(["--out", str(tmp_path / "start")])
    assert '"model.sana_vae"' in capsys.readouterr().out
    model = Blip3oNext.load(tmp_path / "start", max_length=320)
    pictures = toy_scenes(16, size=64).batch("rgb", torch.arange(16))
    codes = model.codes_of(pictures)
    assert codes.shape == (16, 64) and len(codes.unique()) > 64
    weights, scale = read_autoencoder(SHIPPED)
    assert all(torch.equal(p, weights[n].float()) for n, p in model.autoencoder.named_parameters())
    assert model.config.vae["scaling_factor"] == scale and model.encode_target(pictures).shape == (16, 8, 8, 8)
    words = model.processor.tokenizer.encode("what color is the cube ?", add_special_tokens=False)
    assert len(words) == 6 and max(words) < model.grid.first
    main(["--out", str(tmp_path / "again")])
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("start", "again")}) == 1
