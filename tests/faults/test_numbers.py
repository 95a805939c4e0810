"""Numbers that are not finite: in a weight, in the gradient of one rank, in the loss of one row."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.kills import LONGEST_LAUNCH
from tests.faults.moments import Moment
from tests.faults.worlds import everything, recipe, run_folder

POISONED = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.mark.faults
@pytest.mark.timeout(200)
@pytest.mark.fault(
    "a weight of the model folder is NaN",
    does="the run ends with exit code 2 before it saves anything, and names the weight",
    lost="",
)
def test_a_weight_that_is_not_finite_is_named(server, home):
    folder = home / "poisoned"
    shutil.copytree(home / "model", folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    [name] = [name for name in weights if name.endswith(POISONED.removeprefix("model."))]
    weights[name][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    command = [*recipe(home, "poisoned-run", everything(home, 6)), f"model.path={folder}"]
    launch = server.start(command, 2)
    codes = launch.wait(LONGEST_LAUNCH)
    assert set(codes.values()) == {2}, launch.said()
    assert "layers.1.mlp.down_proj" in launch.everything(), launch.said()
    assert not list(run_folder(home, "poisoned-run").glob("checkpoints/step-*")), launch.said()


@pytest.mark.faults
@pytest.mark.timeout(200)
@pytest.mark.fault(
    "the gradient of one rank is NaN in one step",
    does="no weight changes in that step; the run says so, and goes on",
    lost="the samples of that step",
)
def test_a_gradient_that_is_not_finite_once_is_skipped(server, home):
    launch = server.start(
        recipe(home, "gradient", everything(home, 4, evaluation={"suites": {}})), 2, [Moment(1, "backward", 3, "NAN")]
    )
    codes = launch.wait(LONGEST_LAUNCH)
    assert set(codes.values()) == {0} and "skip" in launch.everything().lower(), launch.said()
