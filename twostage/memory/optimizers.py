"""The optimizer and the learning-rate schedule of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from twostage.memory.activations import Keeping
from twostage.memory.adafactor import Adafactor
from twostage.memory.adamw import AdamW
from twostage.recipe import Memory, Stage

# Devices torch has a fused AdamW for: one kernel for all tensors instead of a dozen.
_FUSED = {"cpu", "cuda", "mps", "xpu"}
_BITS = {"adamw": 32, "adamw8bit": 8, "adamw4bit": 4}


@dataclass(frozen=True)
class Updates:
    """How a stage's parameters are moved, and what each forward pass before that keeps where.

    Attributes:
        memory: optimizer, and when it steps.
        rates: peak learning rate of the parameters whose name starts so; the others have the stage's.
        address: of the stochastic roundings, (run's seed, stage).
        keeping: what the forward pass is within.
    """

    memory: Memory = Memory()
    rates: Mapping[str, float] = field(default_factory=dict)
    address: tuple[int, ...] = ()
    keeping: Keeping = nullcontext


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], options: Stage, updates: Updates | None = None
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) or Adafactor (arXiv 1804.04235), as the recipe says.

    float32 AdamW is torch's own, but where it cannot do what is asked: round weights in bfloat16 stochastically, keep
    its state on the host, clip updates. Ours then computes what torch's does without its fused kernels, bit for bit,
    and either takes the other's state from a checkpoint.

    Args:
        parameters: by name, on their device already, float32 or bfloat16.
        options: of the stage.
        updates: torch's AdamW for all parameters at the stage's rate when not given.
    """
    updates = updates or Updates()
    groups: dict[str, list[nn.Parameter]] = {"": []}  # The first is the one whose rate is shown.
    for name, parameter in parameters.items():
        prefix = next((prefix for prefix in updates.rates if name.startswith(prefix)), "")
        groups.setdefault(prefix, []).append(parameter)
    split: list[dict[str, Any]] = [
        {"params": group, "lr": updates.rates.get(prefix, options.learning_rate)}
        for prefix, group in groups.items()
        if group
    ]
    memory = updates.memory
    kind, on_host = memory.optimizer, memory.optimizer_state == "host"
    everywhere: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if kind == "adafactor":
        return Adafactor(split, address=updates.address, on_host=on_host, **everywhere)
    adam: dict[str, Any] = {
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
        **everywhere,
    }
    plain = kind == "adamw" and not on_host and not memory.clip_updates
    if plain and all(parameter.dtype == torch.float32 for parameter in parameters.values()):
        fused = all(parameter.device.type in _FUSED for parameter in parameters.values())
        return torch.optim.AdamW(split, fused=fused, **adam)
    split = [group | {"clip_updates": memory.clip_updates} for group in split]
    return AdamW(split, bits=_BITS[kind], address=updates.address, on_host=on_host, **adam)


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
