"""The folder a tiny Show-o starts from."""

from __future__ import annotations

import torch

from megaunigame.models.show_o import ShowO
from megaunigame.tiny_world.show_o import main
from tests.tiny_world.toy import toy_scenes


def test_the_start_folder_reads_scenes_as_different_codes(tmp_path, capsys):
    main(["--out", str(tmp_path / "start")])
    assert '"showo.model"' in capsys.readouterr().out
    model = ShowO.load(tmp_path / "start", max_length=320)
    codes = model.encode_target(toy_scenes(16, size=64).batch("rgb", torch.arange(16)))
    assert codes.shape == (16, 64) and len(codes.unique()) > 64
    words = model.processor.tokenizer.encode("what color is the cube ?", add_special_tokens=False)
    assert len(words) == 6 and max(words) < model.config.llm_vocab_size
    main(["--out", str(tmp_path / "again")])
    files = sorted(file.relative_to(tmp_path / "start") for file in (tmp_path / "start").rglob("*.safetensors"))
    assert len(files) == 2
    assert all((tmp_path / "start" / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
