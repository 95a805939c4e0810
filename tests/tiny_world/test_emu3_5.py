"""The folder a tiny Emu3.5 starts from."""

from __future__ import annotations

import torch

from megaunigame.models.emu3_5 import Emu3p5
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.tiny_world.emu3_5 import main
from tests.tiny_world.toy import toy_scenes


def test_the_start_folder_reads_scenes_as_different_codes(tmp_path, capsys):
    main(["--out", str(tmp_path / "start")])
    assert '"model.layers"' in capsys.readouterr().out
    model = Emu3p5.load(tmp_path / "start", max_length=320)
    codes = model.encode_target(toy_scenes(16, size=64).batch("rgb", torch.arange(16)))
    assert codes.shape == (16, 64) and len(codes.unique()) > 64
    words = model.processor.tokenizer.encode("what color is the cube ?", add_special_tokens=False)
    assert len(words) == 6 and max(words) < model.grid.first
    rows = model.codebook().norm(dim=1)
    torch.testing.assert_close(rows, rows[:1].expand(256))
    again = Emu3p5.files(str(tmp_path / "start"))
    main(["--out", str(tmp_path / "again")])
    other = Emu3p5.files(str(tmp_path / "again"))
    assert isinstance(other, TensorFiles) and all(torch.equal(again.read(key), other.read(key)) for key in again.index)
