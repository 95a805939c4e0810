"""Floating-point operations of a pass, counted on the meta device: every matrix product and convolution of the real modules.

A product of (m, k) and (k, n) is 2 m k n operations. Attention counts all pairs of a query and a key, also those that a causal
mask hides. The backward is what autograd computes: with adapters, no weight gradient of a frozen matrix is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megaunigame.engine.model_flops import CountFlops
from megaunigame.models.base import UnifiedModel
from megaunigame.passes import PassInputs, PassOutput
from megaunigame.planning.fused_attention import fused_attention
from megaunigame.planning.meta_model import on_meta


@dataclass(frozen=True)
class PassFlops:
    """Operations of one pass over its rows, on one rank."""

    forward: int
    """The frozen tokenizer, which encodes pictures, included."""
    backward: int
    """What gradient checkpointing computes a second time is in it where the model was built with it."""

    @property
    def total(self) -> int:
        return self.forward + self.backward


def pass_flops(model: UnifiedModel, pass_name: str, inputs: PassInputs) -> PassFlops:
    """Operations of forward and backward of one pass of a model on the meta device (`meta_model`).

    `inputs` may be on any device; only shapes count. A model built without gradient checkpointing gives the model FLOPs, by
    which MFU is defined; one with it gives the operations that a run executes.
    """
    with fused_attention():
        with CountFlops() as forward:
            output = model(pass_name, on_meta(inputs))
        with CountFlops() as backward:
            run_backward(model, loss_of(output))
    return PassFlops(forward.total, backward.total)


def loss_of(output: PassOutput) -> Tensor:
    """() what a micro-step would walk back from: the losses of all rows, and the attention that was measured."""
    loss = output.loss_sum.sum()
    return loss if output.attention is None else loss + output.attention.keys.sum()


def run_backward(model: UnifiedModel, loss: Tensor) -> None:
    """Walk back from `loss`; every gradient is dropped as soon as it is complete, as ZeRO does when it has reduced it."""
    hooks = [p.register_post_accumulate_grad_hook(_drop) for p in model.parameters() if p.requires_grad]
    loss.backward()
    for hook in hooks:
        hook.remove()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
