"""The optimizer and the learning-rate schedule of a stage."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from twostage.recipe import Stage

# Devices torch has a fused AdamW for: one kernel for all tensors instead of a dozen.
_FUSED = {"cpu", "cuda", "mps", "xpu"}


def build_optimizer(parameters: Iterable[nn.Parameter], options: Stage) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over `parameters`, which must be on their device already."""
    parameters = list(parameters)
    return torch.optim.AdamW(
        parameters,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
        fused=all(parameter.device.type in _FUSED for parameter in parameters),
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
