"""Which parameters are trained, and in which optimizer groups."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from megaunigame.config import ModelConfig, OptimizerConfig
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import unknown
from megaunigame.step.requests import StepPlan

LORA = "lora"


def element_count(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, even if this rank holds a slice of it."""
    return getattr(parameter, "ds_numel", parameter.numel())


def rank_count(parameter: nn.Parameter) -> int:
    """Elements of the parameter on this rank."""
    return parameter.ds_tensor.numel() if hasattr(parameter, "ds_tensor") else parameter.numel()


def choose_trainable(model: UnifiedModel, config: ModelConfig, plan: StepPlan, seed: int) -> None:
    """Set requires_grad as the recipe asks: adapters only, or whole groups that take part in the plan's passes.

    `seed`: initializes the adapters, equal on all ranks.

    Default groups that no pass of the plan uses stay frozen: without a gradient they would shrink by weight decay alone.
    Raises ConfigError for a group that the family does not have or that no pass uses, for adapters in such a group, and for a
    parameter without dimensions, which the engine cannot broadcast (reshape it to [1]).
    """
    used = {group for name in plan.passes for group in model.groups_of_pass(name, plan.takes_images(name))}
    if config.train == "lora":
        lora = config.lora
        model.add_lora(
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            seed=seed,
            rslora=lora.rslora,
            dora=lora.dora,
        )
        _check_adapters(model, used, plan)
    else:
        for group in config.groups:
            if group not in model.groups:
                raise ConfigError(unknown("group in model.groups", group, list(model.groups)))
            if group not in used:
                raise ConfigError(
                    f"model.groups names {group!r}, but no objective asks for rows that use it (passes: "
                    f"{', '.join(plan.passes)}). Remove it, or add an objective that trains it."
                )
        chosen = set(config.groups or model.trained_by_default) & used
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(model.group_of(name) in chosen)
    scalars = [n for n, p in model.named_parameters() if len(getattr(p, "ds_shape", p.shape)) == 0]
    if scalars:
        raise ConfigError(f"Parameter {scalars[0]} has no dimension; the engine needs shape [1]. Reshape it in the family.")


def without_gradient(model: UnifiedModel, plan: StepPlan) -> set[str]:
    """Names of the parameters that get no gradient from any pass of the plan, on any rank, whatever its rows are."""
    passes = [(set(model.groups_of_pass(name, plan.takes_images(name))), tuple(model.unreached(name))) for name in plan.passes]
    return {
        name
        for name, _ in model.named_parameters()
        if not any(model.group_of(name) in groups and not name.startswith(unreached) for groups, unreached in passes)
    }


def _check_adapters(model: UnifiedModel, used: set[str], plan: StepPlan) -> None:
    """Raises ConfigError for adapters in a group that no pass uses."""
    layers: dict[bool, set[str]] = {True: set(), False: set()}
    idle: set[str] = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = model.group_of(name)
            layers[group in used].add(model.target_of(name.partition(".lora_")[0]))
            idle |= {group} - used
    if idle:
        # Not `targets=[]` where no layer is left: that means all of them.
        kept = f"Type model.lora.targets=[{','.join(sorted(layers[True]))}]" if layers[True] else "Name other layers"
        raise ConfigError(
            f"model.lora.targets puts adapters into {', '.join(sorted(idle))}, which no objective asks for (passes: "
            f"{', '.join(plan.passes)}). {kept}, or add an objective that trains the others."
        )


def group_label(model: UnifiedModel, name: str) -> str:
    """`lora` for adapters, else the family's group."""
    return LORA if "lora_" in name else model.group_of(name)


def optimizer_groups(model: UnifiedModel, config: OptimizerConfig, plan: StepPlan) -> list[dict]:
    """Parameter groups of AdamW: one per (learning-rate factor, decays or not); `factor` is read by the schedule.

    What no pass of the plan gives a gradient does not decay: the engine updates it with a gradient of zeros, where plain torch
    leaves it alone.
    """
    idle = without_gradient(model, plan)
    labels = {group_label(model, n) for n, p in model.named_parameters() if p.requires_grad}
    for group in config.group_lr:
        if group not in labels:
            raise ConfigError(unknown("trained group in optimizer.group_lr", group, sorted(labels)))
    buckets: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = config.group_lr.get(group_label(model, name), 1.0)
            decays = len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and name not in idle
            buckets.setdefault((factor, decays), []).append(parameter)
    if not buckets:
        raise ConfigError("Nothing is trained: model.train=full with no group. Name one in model.groups.")
    return [
        {"params": params, "factor": factor, "weight_decay": config.weight_decay if decays else 0.0}
        for (factor, decays), params in sorted(buckets.items(), key=lambda item: item[0])
    ]


def adamw(groups: Iterable[dict], config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """torch's AdamW; fused on a GPU. It needs no compilation and works on partitioned fp32 masters."""
    return torch.optim.AdamW(
        list(groups), lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=device.type == "cuda"
    )
