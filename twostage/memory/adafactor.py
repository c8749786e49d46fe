"""Adafactor (arXiv 1804.04235) without momentum, its second moments factored: next to no state at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from twostage.memory.tensorwise import CHUNK, TensorwiseOptimizer, rounding_generator, write

# Added to squared gradients, so that none is zero (the paper's epsilon 1).
_TINY = 1e-30


class Adafactor(TensorwiseOptimizer):
    """Algorithm 4 of the paper at the learning rates it is given: no relative steps, no scaling by the weights' size.

    Of a matrix, the running means of the squared gradient's rows and columns are kept. A convolution counts as the
    matrix (out, in * height * width): factored over its last two axes instead, as libraries do it, a 3x3 kernel's state
    is two thirds as large as the kernel. The update of each tensor is clipped to a root mean square of 1, which takes
    the place of clipping the whole gradient.

    Args:
        groups: of parameters, as torch's optimizers take them.
        lr: about the size of an entry of the update, as AdamW's.
        weight_decay: decoupled, as AdamW's.
        decay: the second moments' decay at step t is 1 - t^-decay.
        clip: root mean square above which a tensor's update is scaled down to it.
        address, on_host: see `TensorwiseOptimizer`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        address: Sequence[int],
        decay: float = 0.8,
        clip: float = 1.0,
        on_host: bool = False,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "decay": decay, "clip": clip}
        super().__init__(groups, defaults, address, on_host)

    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        sizes = {"exp_avg_sq": parameter.numel()}
        if parameter.ndim >= 2:
            sizes = {"exp_avg_sq_row": parameter.shape[0], "exp_avg_sq_col": math.prod(parameter.shape[1:])}
        return {name: self.room((size,), (1,), torch.float32, parameter.device).zero_() for name, size in sizes.items()}

    def move(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], address: Sequence[int]
    ) -> None:
        # A vector is a matrix of one row, and not factored.
        weights, gradients = (t.unsqueeze(0) if t.ndim < 2 else t for t in (parameter, gradient))
        fetched = {name: self.fetch(part, parameter.device) for name, part in state.items() if isinstance(part, Tensor)}
        scales = _Scales(fetched, weights)
        scales.update(gradients, 1 - state["step"] ** -group["decay"])
        for name, part in fetched.items():
            self.put_back(state[name], part)
        squares = torch.zeros((), device=parameter.device)
        for rows in _chunks(weights):
            squares += scales.update_of(gradients, rows).square_().sum()
        # Kept on its device: a number of ours would wait for it.
        shrink = (squares / parameter.numel()).sqrt().div_(group["clip"]).clamp_min_(1.0)
        generator = rounding_generator(parameter, address)
        for rows in _chunks(weights):
            values = weights[rows].float()
            values.mul_(1 - group["lr"] * group["weight_decay"])
            update = scales.update_of(gradients, rows).mul_(group["lr"] / shrink)
            write(weights[rows], values.sub_(update.view_as(values)), generator)


class _Scales:
    """One over the root of the second moments of a tensor of two axes or more, computed as it is needed."""

    def __init__(self, state: dict[str, Any], weights: Tensor) -> None:
        self._state, self._columns, self._factored = state, weights[0].numel(), "exp_avg_sq" not in state
        self._row = self._column = torch.empty(0)

    def update(self, gradients: Tensor, decay: float) -> None:
        """Take a new gradient into the means."""
        if not self._factored:
            self._state["exp_avg_sq"].lerp_(gradients[0].float().square().add_(_TINY), 1 - decay)
            return
        row, column = self._state["exp_avg_sq_row"], self._state["exp_avg_sq_col"]
        columns = torch.zeros_like(column)
        for rows in _chunks(gradients):
            square = gradients[rows].float().flatten(1).square().add_(_TINY)
            row[rows].lerp_(square.mean(1), 1 - decay)
            columns += square.sum(0)
        column.lerp_(columns / len(row), 1 - decay)
        self._row, self._column = (row / row.mean()).rsqrt_().unsqueeze(1), column.rsqrt()

    def update_of(self, gradients: Tensor, rows: slice) -> Tensor:
        """The update of some rows before clipping, (rows, columns) float32, a tensor of its own."""
        gradient = gradients[rows].float().reshape(-1, self._columns)
        if not self._factored:
            return gradient * self._state["exp_avg_sq"].rsqrt()
        return (gradient * self._row[rows]).mul_(self._column)


def _chunks(matrix: Tensor) -> Iterator[slice]:
    """Of its rows, so many that the temporaries stay small."""
    step = max(1, CHUNK // max(1, matrix[0].numel()))
    return (slice(start, start + step) for start in range(0, len(matrix), step))
