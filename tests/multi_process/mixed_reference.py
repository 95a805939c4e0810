"""The same training in plain torch with the engine's roundings: bf16 weights, fp32 masters. What a bf16 run is compared with.

Each rank, micro-step and pass has its own backward, because that is where gradients are rounded:

    weight = bf16(master)                                        adapters and frozen weights too
    g[r]   = gradient of W * loss of a pass on rank r            in bf16
    g      = sum over r of to_reduce(g[r]) / W                   in `engine.reduce_dtype`
    G      = sum over micro-steps and passes of fp32(g)          in fp32
    master = AdamW(master, clipped G)                            in fp32

Buffers (rotary frequencies) and frozen tokenizers are fp32. Sums over two ranks are gloo's to the last bit; over more, bf16
sums depend on the order of the ring. Under ZeRO-3 the engine puts a node of the graph in front of every module, which groups
the sums of an activation's gradients; the reference puts one there too. What is left is the norm of the gradient, which the
engine adds up in another order: the clipped gradients differ in their last bit, and now and then rounding flips a weight.

Linear layers are those of the process: deepspeed replaces `F.linear` once a model was partitioned.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from megaunigame.objectives.aia.player import attention_loss
from megaunigame.randomness import seed_micro_step
from megaunigame.step.inputs import PassInputs, PassOutput
from megaunigame.training.trainer import Trainer
from tests.multi_process.plain_reference import PlainReference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class MixedReference(PlainReference):
    """Plain mixed precision on the rows of all ranks."""

    def __init__(self, trainer: Trainer, world_size: int):
        super().__init__(trainer.recipe, trainer.plan, trainer.objective_of, trainer.accumulation, world_size)
        self.world_size, self.taps, self.added = world_size, trainer.stepper.taps, trainer.stepper.terms.added
        self.reduce_dtype = DTYPES[self.recipe.engine.reduce_dtype]
        if any(self.taps.values()):
            self.model.install_taps()
        if tokens := self.recipe.model.pack_tokens:  # equal to padded rows in fp32; in bf16 other kernels round in other places
            self.model.pack_rows(tokens)
        for parameter in self.model.parameters():  # not model.bfloat16(): buffers stay fp32
            parameter.data = parameter.data.bfloat16()
        if trainer.learner.zero_stage == 3:
            for module in self.model.modules():
                module.register_forward_pre_hook(_through_a_node)
        self.masters = {n: nn.Parameter(p.detach().float().clone()) for n, p in self.trained.items()}
        self.optimizer = self.adamw(self.masters)

    def step(self) -> tuple[dict[str, float], float]:
        """One optimizer step: mean loss per term, gradient norm before clipping."""
        names = [*self.plan.terms, *(term.term for term in self.added)]
        weights = torch.tensor(
            [
                *(r.weight for r in self.plan.requests if not r.aside),
                *(self.recipe.objectives["aia"]["weights"][term.pass_name] for term in self.added),
            ]
        )
        counts = sum(self._counts(inputs) for _, _, inputs in self.batches())
        sums = torch.zeros_like(weights)
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
        for micro in range(self.accumulation):
            shares: dict[tuple[str, str], list[Tensor]] = {(p, name): [] for p in self.plan.passes for name in self.trained}
            for rank, inputs in ((r, inputs) for r, m, inputs in self.batches() if m == micro):
                seed_micro_step(self.recipe.seed, self.step_number, micro, rank)
                for pass_name in self.plan.passes:
                    own = self._sums(pass_name, inputs[pass_name])
                    sums += own.detach()
                    ((weights * own / counts.clamp(min=1)).sum() * self.world_size).backward()
                    self._move_gradients(pass_name, shares)
            for (_, name), parts in shares.items():
                self.masters[name].grad += sum(parts).float()
        means = sums / counts
        self.total = float((weights * means)[counts > 0].sum())
        norm = self.update(self.masters)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.masters[name])
        return {n: float(m) for n, m, count in zip(names, means, counts, strict=True) if count}, norm

    def _move_gradients(self, pass_name: str, shares: dict[tuple[str, str], list[Tensor]]) -> None:
        """From the weights to the shares of the ranks, as they are when they meet those of the others."""
        for name, parameter in self.trained.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            shares[pass_name, name].append(gradient.to(self.reduce_dtype) / self.world_size)
            parameter.grad = None

    def _counts(self, inputs_of: dict[str, PassInputs]) -> Tensor:
        """(T,) loss positions of one micro-step of one rank."""
        counts = torch.zeros(len(self.plan.terms))
        for inputs in inputs_of.values():
            counts.index_add_(0, inputs.terms, inputs.counts)
        return torch.cat([counts, *(term.counted(inputs_of[term.pass_name]).sum().view(1) for term in self.added)])

    def _sums(self, pass_name: str, inputs: PassInputs) -> Tensor:
        """(T,) summed losses of one pass."""
        inputs = dataclasses.replace(inputs, taps=self.taps[pass_name])
        output = self.model(inputs)
        sums = output.loss_sum.new_zeros(len(self.plan.terms)).index_add(0, inputs.terms, output.loss_sum)
        return torch.cat([sums, *(self._attention_loss(term, inputs, output, pass_name) for term in self.added)])

    def _attention_loss(self, term, inputs: PassInputs, output: PassOutput, pass_name: str) -> Tensor:
        """(1,) what one pass adds to a term of AIA; its definition is tested in fp32, against whole attention maps."""
        if term.pass_name != pass_name:
            return output.loss_sum.new_zeros(1)
        losses = attention_loss(output.attention.keys, term.layer_targets)
        return torch.where(term.counted(inputs), losses, 0.0).sum().view(1)


def _through_a_node(module: nn.Module, args: tuple) -> tuple:
    """The same inputs, each after an identity."""
    return tuple(a.view_as(a) if torch.is_tensor(a) and a.requires_grad else a for a in args)
