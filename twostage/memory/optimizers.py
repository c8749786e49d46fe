"""The optimizer and the learning-rate schedule of a stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from twostage.recipe import Stage

# Devices torch has a fused AdamW for: one kernel for all tensors instead of a dozen.
_FUSED = {"cpu", "cuda", "mps", "xpu"}


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], options: Stage, rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101).

    Args:
        parameters: by name, on their device already.
        options: of the stage.
        rates: learning rate of the parameters whose name starts so; the others have the stage's.
    """
    groups: dict[str, list[nn.Parameter]] = {"": []}  # The first is the one whose rate is shown.
    for name, parameter in parameters.items():
        prefix = next((prefix for prefix in rates if name.startswith(prefix)), "")
        groups.setdefault(prefix, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "lr": rates.get(prefix, options.learning_rate)}
            for prefix, group in groups.items()
            if group
        ],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
        fused=all(parameter.device.type in _FUSED for parameter in parameters.values()),
    )


def build_schedule(optimizer: torch.optim.Optimizer, options: Stage) -> LambdaLR:
    """diffusers' schedule of that name, counted in optimizer steps whatever the processes and the accumulation."""
    return get_scheduler(
        options.lr_scheduler,
        optimizer,
        step_rules=options.lr_step_rules,
        num_warmup_steps=options.lr_warmup_steps,
        num_training_steps=options.steps,
        num_cycles=options.lr_num_cycles,
        power=options.lr_power,
    )
