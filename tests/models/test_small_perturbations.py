"""A small perturbation arrives in the decoder of a model in bfloat16, and its gradient does too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from megaunigame.models.as_given import compute_as_given
from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.causal.head import TokenHead
from tests.models.shared import CODE_FAMILIES, generated

WIDTH, LENGTH, CODES, BUDGET = 4096, 64.0, 512, 0.005
"""Width and length of a published model's tokens, and an absolute budget."""


def tokens(count: int = 8) -> tuple[Tensor, Tensor]:
    """bfloat16 tokens (1, N, D) of that length, and perturbations of that budget."""
    generator = torch.Generator().manual_seed(0)
    hidden, delta = torch.randn(2, 1, count, WIDTH, generator=generator)
    return (LENGTH * F.normalize(hidden, dim=-1)).bfloat16(), BUDGET * F.normalize(delta, dim=-1)


def head_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "tokens":
        head: nn.Module = TokenHead(WIDTH, CODES)
    else:
        sizes = {"num_embeddings": CODES, "image_token_embed_dim": WIDTH, "projection_dim": WIDTH}
        head = JanusVQVAEHead(JanusVQVAEConfig(**sizes))
        compute_as_given(head)
    return head.bfloat16().requires_grad_(False)


class Heads(CodeModel):
    """Of a family with codes, what maps hidden states to the mean code; the codebook are unit vectors."""

    def __init__(self, kind: str):
        nn.Module.__init__(self)
        self.head = head_of(kind)
        self.table = F.normalize(torch.randn(CODES, 8, generator=torch.Generator().manual_seed(1)), dim=-1)

    def expected_codes(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.head, TokenHead):
            expected = self.head(hidden.flatten(0, 1), table=self.table)
            return expected.likeliest.view(hidden.shape[:2]), expected.mean.unflatten(0, hidden.shape[:2])
        return super().expected_codes(hidden)

    def code_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def codebook(self) -> Tensor:
        return self.table

    def pixels_of(self, codes: Tensor, mean: Tensor | None = None) -> Tensor:
        assert mean is not None
        return mean.transpose(1, 2).unsqueeze(1) / 2  # far from where pixels are clamped


Heads.__abstractmethods__ = frozenset()  # the rest of a family is not needed


def cosine(found: Tensor, true: Tensor) -> float:
    return float(F.cosine_similarity(found.double().flatten(), true.double().flatten(), dim=0))


@pytest.mark.parametrize("kind", ["tokens", "pictures"])
def test_an_absolute_budget_arrives_at_the_codes_in_bfloat16(kind):
    model, (hidden, delta) = Heads(kind), tokens()
    found = model.decode(hidden, delta).pixels - model.decode(hidden).pixels
    exact = Heads(kind).double()
    exact.table = exact.table.double()

    def pixels(moved: Tensor) -> Tensor:
        layers = exact.head
        logits = F.linear(moved, layers.weight) if kind == "tokens" else layers(moved)
        return exact.pixels_of(logits.argmax(-1), logits.softmax(-1) @ exact.table)

    moved = hidden.double() + delta.double()
    true = pixels(moved) - pixels(hidden.double())
    assert true.norm() > 0 and cosine(found, true) > 0.99
    # What reaches a bfloat16 token is hardly the perturbation.
    rounded = (hidden + delta.bfloat16()).float() - hidden.float()
    assert cosine(rounded, delta) < 0.9


@pytest.mark.parametrize("kind", ["tokens", "pictures"])
def test_the_gradient_knows_of_the_perturbation(kind):
    """It is that at hidden + delta, not that at the token which bfloat16 makes of it."""
    model, (hidden, delta) = Heads(kind), tokens()
    weights = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))

    def gradient(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        (found,) = torch.autograd.grad((model.decode(hidden, at).pixels * weights).sum(), at)
        return found

    there, here = gradient(delta), gradient(torch.zeros_like(delta))
    # The change of the gradient over 2 delta is twice that over delta: a staircase of rounded tokens would not show it.
    assert cosine(gradient(2 * delta) - here, there - here) > 0.99
    assert there.dtype == torch.float32 and torch.isfinite(there).all() and there.norm() > 0


@pytest.mark.parametrize("tiny", ["openuni"], indirect=True)
def test_a_small_change_of_latents_is_not_rounded_away(model, picture):
    """The difference of two networks in bfloat16 is mostly rounding where the perturbation is small."""
    output = generated(model, picture)
    exact = {name: parameter.detach().bfloat16().float() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data = exact[name]
    hidden, anchor = output.hidden.detach().bfloat16(), output.target
    delta = 1e-3 * hidden.float().norm(dim=-1, keepdim=True) * F.normalize(torch.randn(hidden.shape), dim=-1)

    def change() -> Tensor:
        with torch.no_grad():
            return model._clean(hidden.float() + delta, anchor) - model._clean(hidden.float(), anchor)

    true = change()
    seen: list[Tensor] = []
    decode = model.decode_latents
    model.decode_latents = lambda latents: (seen.append(latents), decode(latents))[1]
    for part in ("connector", "projector", "transformer", "connector_input"):
        if hasattr(model, part):
            getattr(model, part).bfloat16()
    with torch.no_grad():
        model.decode(hidden, delta, anchor)
    assert true.norm() > 0 and cosine(seen[0] - anchor, true) > 0.99


@pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
def test_a_family_in_bfloat16_decodes_what_is_perturbed(model, picture):
    output = generated(model, picture)
    model.bfloat16()
    delta = torch.full(output.hidden.shape, 1e-3).requires_grad_()
    decoded = model.decode(output.hidden.detach().bfloat16(), delta, output.target)
    (gradient,) = torch.autograd.grad(decoded.pixels.sum(), delta)
    assert gradient.dtype == torch.float32 and gradient.norm() > 0


def test_layers_with_their_own_forward_are_refused():
    class Odd(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return -super().forward(input)

    with pytest.raises(TypeError, match=r"0 is a Odd, which has its own forward"):
        compute_as_given(nn.Sequential(Odd(2, 2)))
