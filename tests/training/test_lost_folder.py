"""A run whose folder another run has taken."""

from __future__ import annotations

import pytest

from megaunigame.errors import ConfigError
from megaunigame.training import trainer as trainer_module
from tests.multi_process.programs import LORA, trainer_of
from tests.multi_process.tiny_run import write_data, write_model


def test_it_ends_before_the_next_step(tmp_path, world, monkeypatch):
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    trainer = trainer_of("lost", tmp_path, world, model=LORA, schedule={"steps": 9})
    found = iter([None, None, ConfigError("taken over by another run")])
    monkeypatch.setattr(trainer_module, "lost_folder", lambda: next(found))
    with pytest.raises(ConfigError, match="taken over by another run"):
        trainer.fit()
    assert trainer.state.step == 2
