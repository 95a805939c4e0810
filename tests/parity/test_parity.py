"""Our numbers against those of the official code, when the fixtures lie next to the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.__main__ import check, kinds, main
from tests.parity.fixture import EXACT, FLOATS, Tolerance, compare

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "parity"


@pytest.mark.parametrize("kind", kinds())
def test_outputs_of_the_official_code_are_reproduced(kind):
    if not (FIXTURES / kind).is_dir():
        pytest.skip(f"no fixture {kind} next to the repository")
    missed = [str(line) for line in check(FIXTURES / kind) if not line.ok]
    assert not missed, "\n".join(missed)


def test_a_fixture_of_an_unknown_kind_is_a_miss(tmp_path, monkeypatch, capsys):
    """What lies next to the fixtures is left out, and said."""
    (tmp_path / "README.md").write_text("")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("inputs", "outputs"):
        save_file({"x": torch.zeros(1)}, folder / f"{name}.safetensors")
    monkeypatch.setattr(sys, "argv", ["parity", str(tmp_path / "README.md"), str(folder)])
    assert main() == 1
    printed = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["parity", str(tmp_path / "README.md")])
    assert main() == 0
    monkeypatch.setattr(sys, "argv", ["parity", str(tmp_path / "misspelled")])
    assert main() == 1 and "misspelled is not a fixture" in capsys.readouterr().out
    assert "README.md is left out" in printed and f"{folder} is a fixture of kind 'other'; known kinds: aia, " in printed


@pytest.mark.parametrize(
    "ours",
    [{}, {"x": torch.tensor([1.0, 2.1])}, {"x": torch.tensor([1.0, float("nan")])}, {"x": torch.tensor([1.0])}],
    ids=["not computed", "too far", "nan", "another shape"],
)
def test_a_wrong_output_is_a_miss(ours):
    (line,) = compare({"x": torch.tensor([1.0, 2.0])}, ours, lambda name: FLOATS)
    assert not line.ok


@pytest.mark.parametrize("last", [2, 3])
def test_codes_must_be_equal(last):
    (line,) = compare({"x": torch.tensor([1, 2])}, {"x": torch.tensor([1, last])}, lambda name: EXACT)
    assert line.ok == (last == 2)


def test_a_tolerance_of_the_largest_entry_covers_small_entries():
    theirs = torch.tensor([0.0, 10.0])
    (line,) = compare({"x": theirs}, {"x": theirs + 0.009}, lambda name: Tolerance(of_largest=1e-3))
    assert line.ok
