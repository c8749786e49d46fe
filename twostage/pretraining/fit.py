"""One resumable loop for every net of the pocket model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

Loss = Callable[[int, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a net learns: linear warm-up, then cosine decay to a hundredth."""

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.0
    save_every: float = 120.0

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; norms, biases and embeddings do not: a token no caption holds must stay where it began."""
    decayed = [p for n, p in net.named_parameters() if p.ndim > 1 and "embed" not in n]
    kept = [p for n, p in net.named_parameters() if p.ndim <= 1 or "embed" in n]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def fit(
    name: str,
    net: nn.Module,
    loss: Loss,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int = 0,
    after_step: Callable[[], None] | None = None,
) -> nn.Module:
    """Train `net` in place and return it, with the averaged weights where the schedule has an EMA.

    Args:
        loss: from the step and a generator seeded by (seed, step) to a scalar; draws nothing else at random,
            so that a resumed run equals an unbroken one.
        folder: keeps `name`.pt with weights, optimizer and step; deleted by nobody, so a finished net is not
            trained again.
    """
    path = folder / f"{name}.pt"
    optimizer = torch.optim.AdamW(
        _groups(net, schedule.weight_decay), lr=schedule.learning_rate, betas=(0.9, 0.99), fused=True
    )
    average = {k: v.detach().clone() for k, v in net.state_dict().items()} if schedule.ema else {}
    step, history = 0, 0.0
    if path.exists():
        state = torch.load(path, map_location=next(net.parameters()).device, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]
    began, saved, first = time.monotonic(), time.monotonic(), step
    net.train()
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.factor(step)
        value = loss(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if after_step:
            after_step()
        step += 1
        _average(average, net, min(schedule.ema, (1 + step) / (10 + step)))
        history = value.item() if step == first + 1 else 0.98 * history + 0.02 * value.item()
        if step % 100 == 0 or step == schedule.steps:
            left = (time.monotonic() - began) / (step - first) * (schedule.steps - step)
            print(f"{name}: step {step}/{schedule.steps}  loss {history:.4f}  {left / 60:.1f} min left", flush=True)
        if step == schedule.steps or time.monotonic() - saved > schedule.save_every:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
            torch.save(state, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
            saved = time.monotonic()
    if average:
        net.load_state_dict(average)
    return net.eval()


@torch.no_grad()
def _average(average: dict[str, torch.Tensor], net: nn.Module, decay: float) -> None:
    for key, value in net.state_dict().items() if average else ():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)
