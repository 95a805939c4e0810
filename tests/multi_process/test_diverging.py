"""Steps that break, on two ranks: skipped, counted, named; and the rows they leave, run again in one process."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest

from megaunigame.command_line import parsed
from megaunigame.commands.replay import run
from megaunigame.errors import ConfigError, DataError
from megaunigame.training import kept_rows
from tests.multi_process import diverging
from tests.multi_process.diverging import BROKEN, FINITE, OVERFLOWED
from tests.multi_process.launcher import run_ranks
from tests.multi_process.tiny_run import write_data, write_model

pytestmark = pytest.mark.ranks

FEW = ["spike_zero2_bf16", "gradient_zero3_bf16_persistent", "gradient_zero3_offloaded_round_robin"]
OTHERS = [case for case in diverging.CASES if case not in FEW]


def replay(words):
    run(parsed("replay", words))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diverging")
    write_model(folder / "model")
    write_data(folder / "shards")
    return folder


@pytest.fixture(scope="module")
def launched(home):
    """What rank 0 said of the few cases and all checks, and their home."""
    said = run_ranks("tests.multi_process.diverging", 2, home, *FEW, *diverging.CHECKS, timeout=580)[0]
    return SimpleNamespace(home=home, reported=[line.split(":")[0] for line in said.splitlines()])


@pytest.mark.timeout(600)
@pytest.mark.fault("loss, gradient or spike in a step", does="all ranks skip its update and go on", lost="one step's samples")
@pytest.mark.parametrize("case", FEW)
def test_the_steps_after_a_skipped_one_equal_plain_torch(launched, case):
    assert case in launched.reported


@pytest.mark.fault("more steps break than the budget", does="all ranks stop with one message", lost="since the last checkpoint")
def test_the_budget(launched):
    assert {"budget", "none_allowed"} <= set(launched.reported)


@pytest.mark.fault(
    "the gradient is exactly 0 for too many steps", does="all ranks stop with one message", lost="since the last checkpoint"
)
def test_a_run_that_learns_nothing(launched):
    assert "zero" in launched.reported


@pytest.mark.fault("weight not finite", does="stops before an update and names the weight", lost="since the last checkpoint")
def test_a_broken_weight(launched):
    assert "weights" in launched.reported


@pytest.mark.fault("loss of a player not finite", does="the player is not updated, the learner is", lost="nothing")
def test_players(launched):
    assert {"player", "game"} <= set(launched.reported)


@pytest.mark.fault("stop after a skipped update", does="budget and spikes resume to the last bit", lost="nothing")
def test_resume(launched):
    assert {"resume", "warning"} <= set(launched.reported)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.fault("loss, gradient or spike in a step", does="all ranks skip its update and go on", lost="one step's samples")
def test_the_other_engines(home):
    said = run_ranks("tests.multi_process.diverging", 2, home, *OTHERS, timeout=580)[0]
    assert [case for case in OTHERS if case not in [line.split(":")[0] for line in said.splitlines()]] == []


def rows_of(output: str) -> list[dict[str, str]]:
    """The lines of rows, taken apart."""
    line = re.compile(
        r"rank (?P<rank>\d), micro-step (?P<micro>\d), (?P<pass>\w+): (?P<term>\w+), (?P<key>\w+) \((?P<place>.*)\): "
        r"loss (?P<loss>\S+) \(in the run (?P<before>\S+)\), gradient norm (?P<norm>\S+), (?P<verdict>.*)"
    )
    return [found.groupdict() for found in map(line.fullmatch, output.splitlines()) if found]


@pytest.mark.fault("a step broke on two ranks", does="`megaunigame replay` runs its rows alone in one process", lost="nothing")
def test_replayed_rows_have_the_losses_of_the_run(launched, capsys):
    run = launched.home / "runs" / FINITE
    replay([str(run)])
    said = capsys.readouterr().out
    assert f"step {BROKEN + 1} of a run of 2 ranks, with the weights of {run}/checkpoints/step-{BROKEN:08d}\nrank 0" in said
    rows = rows_of(said)
    assert {row["rank"] for row in rows} == {"0", "1"} and {row["micro"] for row in rows} == {"0", "1"}
    assert {row["pass"] for row in rows} == {"understand", "generate"}
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["before"]), rel=2e-4), row
        assert row["verdict"] == "finite" and float(row["norm"]) > 0
        assert re.fullmatch(r"train \d+ in data-\d+\.tar", row["place"]), row
    assert said.endswith(f"{len(rows)} rows, all finite with these weights: no row is broken by itself.\n")


def test_a_replay_names_the_module_that_breaks(launched, capsys):
    folder = launched.home / "runs" / OVERFLOWED / "divergence" / "step-00000002"
    replay([str(folder), "--broken"])
    said = capsys.readouterr().out
    rows = rows_of(said)
    assert rows and all(row["verdict"].startswith("NOT FINITE, first in model.") for row in rows), said
    assert all(not math.isfinite(float(row["before"])) for row in rows)
    assert f"{len(rows)} of {len(rows)} rows are not finite" in said


def test_without_a_checkpoint_before_it_says_whose_weights_run(launched, capsys, tmp_path):
    run = tmp_path / "run"
    source = launched.home / "runs" / FINITE
    (run / "divergence").mkdir(parents=True)
    (run / "recipe.yaml").write_text((source / "recipe.yaml").read_text())
    (run / "divergence" / f"step-{BROKEN + 1:08d}").symlink_to(source / "divergence" / f"step-{BROKEN + 1:08d}")
    replay([str(run), "--step", str(BROKEN + 1)])
    said = capsys.readouterr().out
    assert (
        f"with the weights the run began with\nnote: in the run they were those after step {BROKEN}, which were not saved"
        in said
    )


def test_what_cannot_be_replayed(launched, tmp_path):
    run = launched.home / "runs" / FINITE
    with pytest.raises(ConfigError, match="has kept no rows"):
        replay([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"step-00000099 holds no kept rows"):
        replay([str(run), "--step", "99"])
    with pytest.raises(ConfigError, match="leave out --step"):
        replay([str(run / "divergence" / f"step-{BROKEN + 1:08d}"), "--step", "3"])
    damaged = tmp_path / "divergence" / "step-00000003"
    damaged.mkdir(parents=True)
    for name in ("rank-00000.json", "rank-00000.safetensors"):
        content = (run / "divergence" / f"step-{BROKEN + 1:08d}" / name).read_bytes()
        (damaged / name).write_bytes(content[: len(content) // 2] if name.endswith("safetensors") else content)
    with pytest.raises(DataError, match=r"rank-00000\.safetensors and rank-00000\.json are not kept rows"):
        list(kept_rows.read(damaged))
