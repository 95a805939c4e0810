"""The folder a tiny Chameleon starts from."""

from __future__ import annotations

import torch

from megaunigame.models.chameleon import Chameleon
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.tiny_world.chameleon import main
from tests.tiny_world.toy import toy_scenes


def test_the_start_folder_reads_scenes_as_different_codes(tmp_path, capsys):
    main(["--out", str(tmp_path / "start")])
    assert '"model.layers"' in capsys.readouterr().out
    model = Chameleon.load(tmp_path / "start", max_length=320)
    codes = model.encode_target(toy_scenes(16, size=64).batch("rgb", torch.arange(16)))
    assert codes.shape == (16, 64) and len(codes.unique()) > 64
    words = model.processor.tokenizer.encode("what color is the cube ?", add_special_tokens=False)
    assert len(words) == 6 and max(words) < model.grid.first
    again = TensorFiles.of_folder(tmp_path / "start")
    main(["--out", str(tmp_path / "again")])
    other = TensorFiles.of_folder(tmp_path / "again")
    assert all(torch.equal(again.read(key), other.read(key)) for key in again.index)
