"""The released pieces of UniGame alone: perturber and its penalties, thresholds, order and drawing of the buffer, mining.

Two things of the released code are not ours, and are put together here from our pieces:

- the threshold mode `absolute`, a constant of the configuration;
- its rule of mining, hard OR implausible, which lets pictures into the buffer *because* CLIP finds them unlike their text.
  Ours wants both, hard AND plausible.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from megaunigame.adversary.perturber import Perturber
from megaunigame.objectives.unigame.alternating import Alternating
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.game import Round
from megaunigame.objectives.unigame.paths import AttackResult
from megaunigame.objectives.unigame.settings import Penalties, Settings
from megaunigame.replay.drawing import draw_probabilities
from megaunigame.replay.hard_buffer import HardBuffer
from megaunigame.replay.merge import plan_merge
from megaunigame.replay.records import RecordLayout
from megaunigame.step.inputs import UnderstandInputs
from tests.parity.fixture import EXACT, Fixture, Tolerance
from tests.passes import pass_inputs
from tests.worlds import ThreadWorld, on_ranks

INTEGERS = ("buffer_order_", "buffer_pop_", "buffer_sample_sizes")
REGULARIZERS = {"reg_l2": "l2", "reg_tv": "tv", "reg_eps": "gate"}
LOWEST_QUANTILE, HIGHEST_QUANTILE = 0.001, 0.999
ALMOST_ZERO = 1e-9
"""Temperature at which the hardest record is drawn for certain."""


def tolerance(name: str) -> Tolerance:
    if name.startswith(INTEGERS) or name.endswith("_picked"):
        return EXACT
    if name == "delta_bf16":
        return Tolerance(relative=2.0**-7)  # one step of bfloat16, at its largest
    return Tolerance(1e-5, 1e-4) if name.startswith("grad.") else Tolerance(1e-6, 1e-5)


def compute(fixture: Fixture) -> dict[str, Tensor]:
    return {**perturbation(fixture), **starts(fixture), **thresholds(fixture), **buffer(fixture), **mining(fixture)}


def perturbation(fixture: Fixture) -> dict[str, Tensor]:
    """delta, eps, the gradients of both players and the three regularizers."""
    settings = fixture.config["perturber"]
    adversary = perturber(settings["eps_max"], settings["min_eps"], settings["eps_init"], settings["hidden"], settings["dim"])
    weights = load_file(fixture.weights)
    adversary.load_state_dict({ours(key): value.reshape(1) if value.dim() == 0 else value for key, value in weights.items()})
    x = fixture.inputs["x"].requires_grad_()
    delta = adversary.perturb(x, never, torch.Generator())
    (delta * fixture.inputs["R"]).sum().backward()
    assert x.grad is not None
    gradients = {ours(key): parameter.grad for key, parameter in adversary.named_parameters()}
    found = {f"grad.{key}": gradients[ours(key)] for key in weights}
    return {
        "delta": delta,
        "delta_bf16": adversary.perturb(x.bfloat16().float(), never, torch.Generator()).bfloat16(),
        "eps": adversary.eps.reshape(()),
        "grad.x": x.grad,
        **{name: g.reshape(fixture.outputs[name].shape) for name, g in found.items() if g is not None},
        **{name: penalty(adversary, delta, **{kind: 1.0}).reshape(()) for name, kind in REGULARIZERS.items()},
    }


FREE = {"l2": 0.0, "tv": 0.0, "gate": 0.0, "clip": 0.0}


def penalty(adversary: Perturber, delta: Tensor, **weight: float) -> Tensor:
    """(): the penalty of our objective on `delta` with one weight that is not 0."""
    game = object.__new__(Alternating)  # of the game, its penalties alone
    rows = len(delta)
    game.config, game.adversary, game.clip = Settings(penalties=Penalties(**FREE | weight)), adversary, None
    game.round = Round([], True, [], torch.zeros(()), attacked_pictures=torch.tensor(rows))
    ones = torch.ones(rows)
    question = pass_inputs(UnderstandInputs, torch.zeros(rows, 1, dtype=torch.long), counts=ones)
    attacked = AttackResult(question, delta, changed=ones, pictures=torch.zeros(rows, 3, 1, 1), passes=0)
    return game.penalty_share(Attack(redraw=None, question=question), attacked)


def starts(fixture: Fixture) -> dict[str, Tensor]:
    """Gate and length of fresh perturbers."""
    fresh = [perturber(*case, hidden=2, width=2) for case in fixture.config["init_cases"]]
    return {"init_log_eps": torch.cat([p.gate for p in fresh]), "init_eps": torch.cat([p.eps for p in fresh])}


def thresholds(fixture: Fixture) -> dict[str, Tensor]:
    scores = fixture.inputs["scores"]
    found = [quantile(scores, q) for q in fixture.config["quantiles"]]
    return {"threshold": torch.tensor(found), "threshold_absolute": torch.tensor(fixture.config["absolute_value"])}


def buffer(fixture: Fixture) -> dict[str, Tensor]:
    """Pushes are merges of one rank that let everything in."""
    settings, scores = fixture.config["buffer"], fixture.inputs["buffer_scores"]
    layout = RecordLayout(image_size=1, max_length=1)
    held = HardBuffer(layout, settings["capacity"], rows=1, rank=0, ranks=1)

    def push(world: ThreadWorld) -> dict[str, Tensor]:
        orders, pushed = {}, 0
        for number, size in enumerate(settings["push_sizes"]):
            for i in range(pushed, pushed + size):
                record = layout.empty(1)
                record["tokens"], record["loss"] = i, scores[i]
                held.mine(record, np.array([True]))
            held.merge(world, percentile=0.0, step=number, max_age=0)
            orders[f"buffer_order_{number}"] = torch.from_numpy(ids(held, np.arange(held.size)))
            pushed += size
        return orders

    (orders,) = on_ranks(1, push)
    rng = np.random.default_rng(0)
    asked = (1, settings["sample_n"], 1000)
    temperatures = enumerate(settings["temperatures"])
    sizes = [len(held.draw(n, settings["temperatures"][0], rng, remove=False)) for n in asked]
    probabilities = {f"buffer_probs_{k}": torch.from_numpy(draw_probabilities(held.size, t)) for k, t in temperatures}
    popped = held.draw(1, ALMOST_ZERO, rng, remove=True)
    return {
        **orders,
        **probabilities,
        "buffer_sample_sizes": torch.tensor(sizes),
        "buffer_pop_lowtemp_ids": torch.from_numpy(ids(held, popped)),
        "buffer_order_after_pop": torch.from_numpy(ids(held, held.indices)),
    }


def mining(fixture: Fixture) -> dict[str, Tensor]:
    """The released rule: hard or implausible, the hardest of each source, the hardest of these."""
    found = {}
    for number, case in enumerate(fixture.config["mining"]):
        losses = fixture.inputs[f"mine{number}_ce_per_microbatch"].repeat_interleave(case["micro_batch"])
        similarity = fixture.inputs[f"mine{number}_clip"]
        scores = losses[: len(similarity)] + case["clip_lambda"] * (case["clip_tau"] - similarity).clamp(min=0)
        kept = (scores >= quantile(scores, case["quantile"])) | (similarity <= case["clip_tau"])
        picked: list[int] = []
        for source in kept.nonzero().squeeze(1).split(kept.view(case["batch"], -1).sum(1).tolist()):
            picked += source[hardest(scores[source], case["topk"])].tolist()
        order = hardest(scores[picked], case["push_max"] or len(picked))
        found[f"mine{number}_picked"] = torch.tensor(picked)[order]
        found[f"mine{number}_picked_H"] = scores[picked][order]
    return found


def quantile(scores: Tensor, q: float) -> float:
    """Of (n,) scores, as our merge finds it; the released code never takes the very first or last."""
    return plan(scores, capacity=1, percentile=100 * min(max(q, LOWEST_QUANTILE), HIGHEST_QUANTILE)).threshold


def hardest(scores: Tensor, at_most: int) -> Tensor:
    """Indices of the highest of (n,) scores, hardest first, the earlier one first among equals."""
    return torch.from_numpy(plan(scores, at_most, percentile=0.0).columns - at_most)


def plan(scores: Tensor, capacity: int, percentile: float) -> Any:
    """The merge of one rank that owns nothing and has mined (n,) scores."""
    table = np.concatenate([np.full(capacity, np.nan), scores.numpy()])[None]
    return plan_merge(table, np.zeros(0, np.int64), rows=max(len(scores), 1), capacity=capacity, percentile=percentile)


def ids(held: HardBuffer, indices: np.ndarray) -> np.ndarray:
    return held.records(indices)["tokens"][:, 0].astype(np.int64)


def perturber(eps_max: float, eps_min: float, eps_init: float, hidden: int, width: int) -> Perturber:
    return Perturber(Perturber.Config(eps_max, eps_min=eps_min, eps_init=eps_init, hidden=hidden), width)


def ours(key: str) -> str:
    """Official name of a parameter -> ours."""
    return "gate" if key == "log_eps" else key


def never(delta: Tensor) -> Tensor:
    raise AssertionError("the perturber asks for no loss")
