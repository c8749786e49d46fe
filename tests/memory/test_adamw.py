"""AdamW's updates, clipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.memory.test_optimizers import ADAM, SHAPES, adamw, after, built, gap, parameters_of
from twostage.recipe import Memory


def test_clipped_updates_are_those_of_the_paper() -> None:
    """Algorithm 2 of arXiv 2304.13013, written out."""
    beta1, beta2 = ADAM["betas"]
    lr, eps, decay = ADAM["lr"], ADAM["eps"], ADAM["weight_decay"]

    def stable(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        class Stable(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:
                for parameter in parameters:
                    state, gradient = self.state[parameter], parameter.grad
                    assert gradient is not None
                    t = state["t"] = state.get("t", 0) + 1
                    state["v"] = beta1 * state.get("v", 0) + (1 - beta1) * gradient
                    state["u"] = beta2 * state.get("u", 0) + (1 - beta2) * gradient**2
                    v, u = state["v"] / (1 - beta1**t), state["u"] / (1 - beta2**t)
                    rms = (gradient**2 / u.clamp_min(eps**2)).mean().sqrt()
                    rate = lr / rms.clamp_min(1.0)
                    parameter.sub_(rate * decay * parameter + rate * v / (u.sqrt() + eps))

        return Stable(parameters, {})

    ours, _ = after(built(Memory(clip_updates=True), weight_decay=decay), parameters_of(SHAPES))
    theirs, _ = after(stable, parameters_of(SHAPES))
    plain, _ = after(adamw(32), parameters_of(SHAPES))
    assert gap(ours, theirs, parameters_of(SHAPES)) < 1e-5
    assert gap(plain, theirs, parameters_of(SHAPES)) > 1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw4bit"])
def test_a_gradient_far_larger_than_those_before_it_moves_weights_less_far_where_updates_are_clipped(
    optimizer: Any,
) -> None:
    ways = []
    for clipped in (False, True):
        (parameter,) = parameters_of(((64, 64),))
        moved, draws = built(Memory(optimizer=optimizer, clip_updates=clipped))([parameter]), torch.Generator()
        for factor in (*[1.0] * 20, 100.0):
            before = parameter.detach().clone()
            parameter.grad = torch.randn(parameter.shape, generator=draws) * factor
            moved.step()
        ways.append(float((parameter.detach() - before).norm()))
    assert ways[1] < 0.3 * ways[0]
