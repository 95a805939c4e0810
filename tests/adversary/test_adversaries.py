"""What an adversary does with visual tokens: lengths within the budget, gradients, randomness, settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megaunigame.adversary.base import Adversary
from megaunigame.adversary.noise import Noise
from megaunigame.adversary.perturber import Perturber
from megaunigame.adversary.pgd import Pgd
from megaunigame.errors import ConfigError
from megaunigame.registry import available, find
from megaunigame.settings import fill

ROWS, PLACES, WIDTH = 3, 5, 12
BUDGETS = ("absolute", "relative")


def tokens(seed: int = 0) -> Tensor:
    """(3, 5, 12) of very different lengths."""
    source = generator(seed)
    return torch.randn(ROWS, PLACES, WIDTH, generator=source) * torch.rand(ROWS, PLACES, 1, generator=source) * 10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def never(delta: Tensor) -> Tensor:
    raise AssertionError("this adversary asks for no loss")


def budget_of(adversary: Adversary, x: Tensor) -> Tensor:
    """(3, 5): the longest legal perturbation of each token."""
    share = x.norm(dim=-1) if adversary.config.budget == "relative" else torch.ones(x.shape[:2])
    return adversary.config.eps_max * share


def perturber(**settings) -> Perturber:
    torch.manual_seed(1)
    return Perturber(Perturber.Config(**{"hidden": 8, **settings}), WIDTH)


class Toy:
    """loss(delta) = - |delta - goal|^2 per row: the ascent has one direction, towards `goal`."""

    def __init__(self, goal: Tensor):
        self.goal, self.calls = goal, 0

    def __call__(self, delta: Tensor) -> Tensor:
        self.calls += 1
        return -(delta - self.goal).square().sum((1, 2))


# Length


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_perturber_moves_every_token_by_exactly_eps(budget):
    x = tokens()
    adversary = perturber(eps_max=0.4, eps_min=0.1, eps_init=0.1, budget=budget)
    length = x.norm(dim=-1) if budget == "relative" else torch.ones(ROWS, PLACES)
    eps = 0.1 + 0.3 * torch.sigmoid(torch.tensor(0.25).logit())
    torch.testing.assert_close(adversary.eps, eps.reshape(1))
    torch.testing.assert_close(adversary.perturb(x, never, generator()).norm(dim=-1), eps * length)


@pytest.mark.parametrize("budget", BUDGETS)
def test_noise_uses_the_whole_budget(budget):
    x, adversary = tokens(), Noise(Noise.Config(eps_max=0.3, budget=budget), WIDTH)
    torch.testing.assert_close(adversary.perturb(x, never, generator()).norm(dim=-1), budget_of(adversary, x))
    assert adversary.eps.tolist() == pytest.approx([0.3])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("step", [0.5, 5.0], ids=["short steps", "steps across the ball"])
def test_pgd_stays_within_the_budget(budget, step):
    x = tokens()
    adversary = Pgd(Pgd.Config(eps_max=0.3, budget=budget, steps=4, step=step), WIDTH)
    delta = adversary.perturb(x, Toy(torch.randn(x.shape, generator=generator(2))), generator())
    assert (delta.norm(dim=-1) <= budget_of(adversary, x) * (1 + 1e-5)).all()
    assert delta.norm(dim=-1).min() > 0


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", ["perturber", "noise", "pgd"])
def test_a_token_of_zeros_gets_a_finite_perturbation(kind, budget):
    """Relative to nothing, nothing may be added."""
    found = find("adversary", kind, Adversary)
    x = tokens()
    x[0, 0] = 0
    with torch.enable_grad():
        delta = found(found.Config(budget=budget), WIDTH).perturb(x, Toy(torch.ones_like(x)), generator())
    assert torch.isfinite(delta).all()
    assert (delta[0, 0].norm() == 0) == (budget == "relative")


# Gradient


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_gradient_reaches_every_parameter_the_gate_and_the_tokens(budget):
    adversary, x = perturber(budget=budget), tokens().requires_grad_()
    (adversary.perturb(x, never, generator()) * torch.randn(x.shape, generator=generator(3))).sum().backward()
    gradients = {name: p.grad for name, p in adversary.named_parameters()} | {"tokens": x.grad}
    assert "gate" in gradients and len(gradients) == 7
    for name, gradient in gradients.items():
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().max() > 0, name


def test_only_the_perturber_learns():
    assert perturber().learns
    assert not Noise(Noise.Config(), WIDTH).learns and not Pgd(Pgd.Config(), WIDTH).learns


# Randomness


@pytest.mark.parametrize(("kind", "loss"), [(Noise, never), (Pgd, Toy(torch.ones(ROWS, PLACES, WIDTH)))], ids=["noise", "pgd"])
def test_randomness_is_that_of_the_generator_alone(kind, loss):
    adversary = kind(kind.Config(), WIDTH)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = adversary.perturb(tokens(), loss, generator(4))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"
    torch.manual_seed(1)
    assert torch.equal(first, adversary.perturb(tokens(9), loss, generator(4))), "an absolute budget does not see the tokens"
    assert not torch.equal(first, adversary.perturb(tokens(), loss, generator(5)))


def test_equal_seeds_build_equal_perturbers():
    for (name, p), q in zip(perturber().named_parameters(), perturber().parameters(), strict=True):
        assert torch.equal(p, q), name


# Ascent


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("budget", BUDGETS)
def test_pgd_asks_for_exactly_its_steps(steps, budget):
    toy = Toy(torch.ones(ROWS, PLACES, WIDTH))
    with torch.no_grad():  # as on a path whose adversary learns nothing
        delta = Pgd(Pgd.Config(steps=steps, budget=budget), WIDTH).perturb(tokens(), toy, generator())
    assert toy.calls == steps and not delta.requires_grad


def test_pgd_ascends_to_the_nearest_legal_point():
    """The goal lies outside the ball, so the best perturbation points to it with the full length."""
    goal = torch.randn(ROWS, PLACES, WIDTH, generator=generator(6)) * 3
    toy, losses = Toy(goal), []
    for steps in (1, 3, 40):
        delta = Pgd(Pgd.Config(eps_max=0.5, steps=steps), WIDTH).perturb(tokens(), toy, generator())
        losses.append(toy(delta).sum().item())
    assert losses[0] < losses[1] < losses[2]
    torch.testing.assert_close(delta, 0.5 * goal / goal.norm(dim=-1, keepdim=True), rtol=0, atol=1e-3)


@pytest.mark.parametrize("budget", BUDGETS)
def test_pgd_starts_at_half_the_length_and_may_end_inside_of_the_ball(budget):
    x = tokens()
    adversary = Pgd(Pgd.Config(eps_max=0.4, budget=budget, steps=8, step=0.1), WIDTH)
    longest, toy, seen = budget_of(adversary, x), Toy(torch.zeros_like(x)), []

    def ascend(delta: Tensor) -> Tensor:
        seen.append(delta.detach().norm(dim=-1))
        return toy(delta)

    delta = adversary.perturb(x, ascend, generator())
    torch.testing.assert_close(seen[0], longest / 2)
    assert (delta.norm(dim=-1) <= 0.11 * longest).all(), "the goal is nothing, one step away at most"


def test_pgd_leaves_the_learner_without_gradients():
    weight = torch.nn.Parameter(torch.ones(WIDTH))
    Pgd(Pgd.Config(), WIDTH).perturb(tokens(), lambda delta: (delta * weight).sum((1, 2)), generator())
    assert weight.grad is None


# Construction


def test_the_size_of_the_paper():
    with torch.device("meta"):
        adversary = Perturber(Perturber.Config(), 4096)
    assert sum(p.numel() for p in adversary.parameters()) == 4096 * 256 * 2 + 256 * 256 + 2 * 256 + 1


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_depth_counts_linear_layers(layers):
    adversary = perturber(layers=layers, activation="silu")
    linear = [m for m in adversary.mlp if isinstance(m, torch.nn.Linear)]
    assert len(linear) == layers and len(adversary.mlp) == 2 * layers - 1
    assert [m.bias is not None for m in linear] == [True] * (layers - 1) + [False]
    last = linear[-1].weight.detach()  # (12, 8): orthonormal columns
    torch.testing.assert_close(last.T @ last, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("eps_init", "eps"), [(None, 0.1), (0.05, 0.05), (0.19, 0.19), (0.2, 0.2), (0.5, 0.2)])
def test_the_gate_starts_at_eps_init(eps_init, eps):
    """At most at eps_max, as in the released code, which clamps the share."""
    adversary = perturber(eps_max=0.2, eps_init=eps_init)
    assert adversary.gate.shape == (1,) and adversary.eps.tolist() == [pytest.approx(eps, rel=1e-5)]


def test_eps_stays_between_its_ends():
    adversary = perturber(eps_max=0.2, eps_min=0.05)
    for gate, eps in ((-100.0, 0.05), (100.0, 0.2)):
        with torch.no_grad():
            adversary.gate.fill_(gate)
        assert adversary.eps.item() == pytest.approx(eps)


def test_adversaries_are_found_by_name():
    assert {"noise", "perturber", "pgd"} <= set(available("adversary", Adversary))
    kinds = {"noise": Noise, "perturber": Perturber, "pgd": Pgd}
    assert {name: find("adversary", name, Adversary) for name in kinds} == kinds
    with pytest.raises(ConfigError, match=r"Unknown adversary name 'perturbr'. Did you mean 'perturber'\? Legal: noise, "):
        find("adversary", "perturbr", Adversary)


# Settings

PATH = "objectives.unigame.adversary"
LEGAL = [
    (Perturber, {"eps_max": 1e-6}),
    (Perturber, {"eps_max": 0.1, "eps_min": 0.09}),
    (Perturber, {"eps_init": 0.02}),
    (Perturber, {"layers": 2, "hidden": 1, "activation": "relu"}),
    (Perturber, {"budget": "relative", "eps_max": 3.0}),
    (Noise, {"budget": "relative"}),
    (Pgd, {"steps": 1, "step": 10.0}),
]
ILLEGAL = [
    *((kind, {"eps_max": eps}, PATH + r"\.eps_max must be greater than 0; got " + str(eps)) for kind in (Perturber, Noise, Pgd)
      for eps in (0.0, -0.1)),
    *((kind, {"budget": "share"}, PATH + r"\.budget 'share'\. Legal: absolute, relative")
      for kind in (Perturber, Noise, Pgd)),
    (Perturber, {"eps_min": -0.01}, r"eps_min must lie in \[0, eps_max=0.02\); got -0.01"),
    (Perturber, {"eps_min": 0.02}, r"eps_min must lie in \[0, eps_max=0.02\); got 0.02"),
    (Perturber, {"eps_init": 0.0}, r"eps_init must be greater than 0; got 0.0"),
    (Perturber, {"layers": 1}, r"layers must be at least 2; got 1"),
    (Perturber, {"hidden": 0}, r"hidden must be at least 1; got 0"),
    (Perturber, {"activation": "tanh"}, r"activation 'tanh'\. Legal: gelu, relu, silu"),
    (Pgd, {"steps": 0}, r"steps must be at least 1; got 0"),
    (Pgd, {"step": 0.0}, r"step must be greater than 0; got 0.0"),
    (Noise, {"eps_max": float("nan")}, "eps_max"),
    (Perturber, {"epsmax": 0.1}, "epsmax"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), LEGAL, ids=str)
def test_legal_settings(kind, settings):
    adversary = kind(fill(kind.Config, settings, PATH), WIDTH)
    assert torch.isfinite(adversary.perturb(tokens(), Toy(torch.ones(ROWS, PLACES, WIDTH)), generator())).all()


@pytest.mark.parametrize(("kind", "settings", "message"), ILLEGAL, ids=str)
def test_illegal_settings(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        fill(kind.Config, settings, PATH)
