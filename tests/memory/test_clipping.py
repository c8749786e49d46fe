"""Gradients are clipped as torch clips them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from twostage.memory.clipping import clip_gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [0.5, 1e4, math.inf])
def test_gradients_are_clipped_as_torch_does_it_bit_for_bit(limit: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(shape).to(dtype) for shape in ((3, 4), (7,), (2, 3, 3, 3), ())]
    mine, torchs = ([nn.Parameter(torch.zeros_like(one)) for one in gradients] for _ in range(2))
    for parameters in (mine, torchs):
        parameters.append(nn.Parameter(torch.zeros(5)))  # Nothing has reached this one.
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = gradient.clone()
    norm = clip_gradients(mine, limit)
    assert norm == float(nn.utils.clip_grad_norm_(torchs, limit))
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(mine[:-1], torchs[:-1], strict=True))
    assert mine[-1].grad is None


def test_a_gradient_that_is_not_finite_has_a_norm_that_is_not() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert math.isnan(clip_gradients([parameter], 1.0))
