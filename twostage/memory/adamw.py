"""AdamW (arXiv 1711.05101) whose moments are kept in 32, 8 or 4 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from twostage.memory.quantisation import Quantiser
from twostage.memory.tensorwise import CHUNK, TensorwiseOptimizer, flat, rounding_generator, write

_MOMENTS = ("exp_avg", "exp_avg_sq")
# Smaller tensors, biases and norms, keep float32 moments: together they are next to nothing, and they matter.
_SMALLEST = 4096


class AdamW(TensorwiseOptimizer):
    """torch's formula: m and v decay, both are corrected for their start at zero, decay of the weights is decoupled.

    The update is computed from the moments as they are before they are quantised again.

    Args:
        groups: of parameters, as torch's optimizers take them.
        lr, betas, eps, weight_decay: as torch's AdamW.
        bits: of the moments of tensors of at least 4096 elements: 32, 8 or 4. Others' have 32.
        address: see `TensorwiseOptimizer`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        bits: int,
        address: Sequence[int],
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, address)
        # Of the first and the second moment; both take 2.03 bytes a parameter in 8 bits, 1.06 in 4.
        self._quantisers: dict[str, Quantiser | None] = dict.fromkeys(_MOMENTS)
        if bits == 8:
            first, second = Quantiser(8, 256, signed=True), Quantiser(8, 256, signed=False)
            self._quantisers = {"exp_avg": first, "exp_avg_sq": second}
        elif bits == 4:
            first, second = Quantiser(4, 128, signed=True), Quantiser(4, 128, signed=False, linear=True)
            self._quantisers = {"exp_avg": first, "exp_avg_sq": second}

    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        count, device, state = parameter.numel(), parameter.device, {}
        for name, quantiser in self._quantisers_of(parameter).items():
            if quantiser:
                state[name], state[f"{name}_scale"] = quantiser.zeros(count, device)
            else:
                state[name] = torch.zeros(count, device=device)
        return state

    def move(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], address: Sequence[int]
    ) -> None:
        weights, gradients = flat(parameter, parameter), flat(gradient, parameter)
        generator = rounding_generator(parameter, address)
        quantisers = self._quantisers_of(parameter)
        for start in range(0, len(weights), CHUNK):
            chunk = slice(start, min(start + CHUNK, len(weights)))
            m, v = (_read(state, name, quantiser, chunk) for name, quantiser in quantisers.items())
            values = weights[chunk].float()
            _adamw_(values, gradients[chunk].float(), m, v, group, state["step"])
            write(weights[chunk], values, generator)
            for (name, quantiser), moment in zip(quantisers.items(), (m, v), strict=True):
                _keep(state, name, quantiser, chunk, moment)

    def _quantisers_of(self, parameter: Tensor) -> dict[str, Quantiser | None]:
        return self._quantisers if parameter.numel() >= _SMALLEST else dict.fromkeys(_MOMENTS)


def _adamw_(weights: Tensor, gradient: Tensor, m: Tensor, v: Tensor, group: dict[str, Any], step: int) -> None:
    """One step, in place: of the weights and of both moments, (n,) float32 each."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    weights.mul_(1 - lr * group["weight_decay"])
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    weights.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


def _read(state: dict[str, Any], name: str, quantiser: Quantiser | None, chunk: slice) -> Tensor:
    """Part of a moment in float32: a view where it is kept so."""
    if quantiser is None:
        part: Tensor = state[name][chunk]
        return part
    codes, scales = _slices(quantiser, chunk)
    return quantiser.unpack(state[name][codes], state[f"{name}_scale"][scales], chunk.stop - chunk.start)


def _keep(state: dict[str, Any], name: str, quantiser: Quantiser | None, chunk: slice, values: Tensor) -> None:
    if quantiser is not None:
        codes, scales = _slices(quantiser, chunk)
        state[name][codes], state[f"{name}_scale"][scales] = quantiser.pack(values)


def _slices(quantiser: Quantiser, chunk: slice) -> tuple[slice, slice]:
    """Where the codes and the scales of a chunk are; chunks begin at a block."""
    bits, block = quantiser.bits, quantiser.block
    codes = slice(chunk.start * bits // 8, -(-chunk.stop * bits // 8))
    return codes, slice(chunk.start // block, -(-chunk.stop // block))
