"""One run whose objectives, representations, adversary, data source and suite are the examples, in one process; on a family
that is there, and on that of the example."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from megaunigame.config import load_recipe
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.objectives.player import Player
from megaunigame.parallel.mesh import Mesh
from megaunigame.step.inputs import UnderstandOutput
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.training.trainer import Trainer
from tests.data.shard_files import encoded
from tests.extending.conftest import write_files, write_patches
from tests.multi_process.tiny_run import sample, write_model, write_pictures, write_recipe

OBJECTIVES = {
    "captioning": {"rows": 2},
    "squared": {"weight": 0.5},
    "unimrg": {
        "rows": {"mirror": 1, "normals": 1},
        "own_prompts": {"mirror": ["draw it mirrored ."], "normals": ["draw its normals ."]},
    },
    "unigame": {
        **{"clean_rows": 1, "hard_rows": 1, "attack_rows": 2, "turns": 1, "pictures_every": 0},
        "adversary": {"kind": "universal", "budget": "relative", "eps_max": 0.5},
        "buffer": {"merge_every": 1, "capacity": 16, "percentile": 0.0},
    },
}
HOOKS = ("rehearse", "before_learner", "before_micro_step", "after_pass", "after_learner", "pending")


@dataclasses.dataclass
class Run:
    trainer: Trainer
    first: torch.Tensor
    """The adversary's direction before step 1."""
    metrics: list[dict]
    calls: list[tuple[str, str]]
    """(hook, pass) of the player of `squared`, in order."""
    passes: list[tuple]
    """(inputs, losses of the rows) of every understand pass."""


def normals(number):
    return np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def noted(player: Player, calls: list, passes: list) -> None:
    """Write down every call of a hook."""

    def called(hook, original, *given):
        calls.append((hook, type(given[2]).__name__ if hook == "after_pass" else ""))
        if hook == "after_pass" and isinstance(given[2], UnderstandOutput):
            passes.append((given[1].understand, given[2].loss_sum.detach().clone()))
        return original(*given)

    for hook in HOOKS:
        setattr(player, hook, partial(called, hook, getattr(player, hook)))


@pytest.fixture(scope="module", params=["janus", "patches"])
def run(request, examples, world, tmp_path_factory):
    home = tmp_path_factory.mktemp("extended")
    model = home / "model"
    model.mkdir()
    {"janus": write_model, "patches": write_patches}[request.param](model)
    numbers = [n for n in range(1, 40) if n % 5 and n % 7]
    write_files(home / "pictures", {f"{n:04d}": {**sample(n), "normals.png": encoded(normals(n))} for n in numbers})
    write_pictures(home / "held_out", 3)
    recipe = write_recipe(
        home / "recipe.yaml",
        home,
        data={"train": {"shards": str(home / "pictures"), "backend": "pictures"}},
        batch={"accumulation": 2},
        evaluation={"suites": {"perplexity": {"shards": str(home / "held_out"), "batch": 2}}},
    )
    overrides = [f"objectives={json.dumps(OBJECTIVES)}", f"model.family={request.param}"]
    trainer = Trainer(load_recipe(str(recipe), overrides), Mesh.of(world))
    squared, game = trainer.players
    first, calls, passes = game.adversary.direction.detach().clone(), [], []
    noted(squared, calls, passes)
    trainer.dry_run()
    batches = iter(MicroBatchLoader(trainer.micro_batches, 0, 4, 0))
    metrics = [trainer.train_step(batches) for _ in range(2)]
    trainer.saves.finish()
    return Run(trainer, first, metrics, calls, passes)


def test_rows_of_new_terms_are_in_the_plan_and_have_losses(run):
    assert run.trainer.plan.terms == ("captioning", "mirror", "normals", "clean", "hard")
    for metrics in run.metrics:
        assert all(metrics[f"loss/{term}"] > 0 for term in ("captioning", "mirror", "normals", "clean", "squared"))
    assert run.metrics[1]["loss/hard"] > 0, "the buffer has pictures after the first step"


def test_the_rows_are_made_of_the_samples(run):
    micro = run.trainer.micro_batches[0]
    assert [question for question, _ in micro.inputs[UNDERSTAND].texts[:2]] == ["describe", "describe"]
    assert [prompt for prompt, _ in micro.inputs[GENERATE].texts] == ["draw it mirrored .", "draw its normals ."]
    shown = micro.inputs[GENERATE].with_values()
    source, target = shown.images, shown.targets
    torch.testing.assert_close(target[0], source[0, 0].flip(-1))
    key = micro.inputs[GENERATE].keys[1]
    stored = run.trainer.streams["train"].source
    assert key in {file.stem for file in stored.samples} and stored.location.endswith("pictures")
    torch.testing.assert_close(target[1], torch.from_numpy(normals(int(key))).permute(2, 0, 1) / 127.5 - 1)


def test_hooks_of_a_player_are_called_in_their_order(run):
    micro_step = [("before_micro_step", ""), ("after_pass", "GenerateOutput"), ("after_pass", "UnderstandOutput")]
    step = [("before_learner", ""), *micro_step, *micro_step, ("after_learner", "")]
    assert run.calls == [("rehearse", ""), *step, *step, ("pending", "")]


def test_its_loss_and_its_metric_are_what_they_say(run):
    for number, metrics in enumerate(run.metrics):
        counted = [(x.counts, loss) for x, loss in run.passes[2 * number : 2 * number + 2]]
        rows = torch.cat([loss[counts > 0] / counts[counts > 0] for counts, loss in counted])
        assert metrics["loss/squared"] == pytest.approx(rows.square().mean().item(), rel=1e-5)
        assert metrics["squared/worst_row"] == pytest.approx(rows.max().item(), rel=1e-6)
        terms = dict.fromkeys(("captioning", "mirror", "normals", "clean", "adversary_penalty"), 1.0)
        terms |= {"hard": 0.5, "squared": 0.5}
        total = sum(weight * metrics.get(f"loss/{term}", 0.0) for term, weight in terms.items())
        assert metrics["loss/total"] == pytest.approx(total, rel=1e-5)


def test_the_adversary_perturbs_and_learns(run):
    game = run.trainer.players[1]
    assert type(game.adversary).__name__ == "Universal"
    assert not torch.equal(game.adversary.direction, run.first) and run.metrics[0]["adversary/grad_norm"] > 0
    tokens = torch.randn(2, 4, len(run.first))
    delta = game.adversary.perturb(tokens, lambda delta: delta.sum((1, 2)), torch.Generator())
    torch.testing.assert_close(delta.norm(dim=-1), 0.5 * tokens.norm(dim=-1))


def test_the_suite_measures_the_model(run):
    result = run.trainer.parts.evaluate(run.trainer.learner, print)["suites"]["perplexity"]
    tokens = result["tables"][0]["rows"][0][1]
    assert tokens > 3 and math.isfinite(result["metrics"]["perplexity"]) and result["metrics"]["perplexity"] > 1
    kept = json.loads((run.trainer.folder / "evaluation" / "step-00000002.json").read_text())
    assert kept["suites"]["perplexity"]["metrics"] == result["metrics"]


def test_a_loss_of_a_player_is_judged_by_the_gradient_it_makes(run):
    divergence, squared = run.trainer.stepper.divergence, run.trainer.stepper.terms.names[-1]
    assert run.trainer.stepper.terms.joined == ()
    assert not divergence.accepts(2, {squared: math.nan}, 1.0), "a term over rows is not a loss of a player"
    assert divergence.refusal.terms == [squared]
