"""AdamW (arXiv 1711.05101) whose moments are kept in 32, 8 or 4 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
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

    The update is computed from the moments as they are before they are quantised again. Where updates are clipped, a
    tensor's learning rate is divided by max(1, RMS of g / sqrt(v)), v corrected for its start: by how much larger its
    gradient is than what v has seen (StableAdamW, arXiv 2304.13013, algorithm 2).

    Args:
        groups: of parameters, as torch's optimizers take them; one with `clip_updates` has its updates clipped.
        lr, betas, eps, weight_decay: as torch's AdamW.
        bits: of the moments of tensors of at least 4096 elements: 32, 8 or 4. Others' have 32.
        address, on_host: see `TensorwiseOptimizer`.
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
        on_host: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults, address, on_host)
        # Of the first and the second moment; both take 2.03 bytes a parameter in 8 bits, 1.06 in 4.
        self._quantisers = moment_quantisers(bits)

    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        count, device, state = parameter.numel(), parameter.device, {}
        for name, quantiser in self.quantisers_of(parameter).items():
            if quantiser:
                codes, scales = quantiser.sizes(count)
                state[name] = self.room((codes,), (1,), torch.uint8, device).fill_(quantiser.zero)
                state[f"{name}_scale"] = self.room((scales,), (1,), torch.float32, device).zero_()
            else:
                state[name] = self.room(parameter.shape, parameter.stride(), torch.float32, device).zero_()
        return state

    def move(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], address: Sequence[int]
    ) -> None:
        weights, gradients = flat(parameter, parameter), flat(gradient, parameter)
        generator = rounding_generator(parameter, address)
        moments = [
            _Moment(self, name, state, quantiser, parameter)
            for name, quantiser in self.quantisers_of(parameter).items()
        ]
        surprise = _surprise(gradients, moments[1], group, state["step"]) if group.get("clip_updates") else None
        for chunk in _chunks(weights):
            m, v = (moment.read(chunk) for moment in moments)
            values = weights[chunk].float()
            _adamw_(values, gradients[chunk].float(), m, v, group, state["step"], surprise)
            write(weights[chunk], values, generator)
            for moment, became in zip(moments, (m, v), strict=True):
                moment.write(chunk, became)

    def quantisers_of(self, parameter: Tensor) -> dict[str, Quantiser | None]:
        """What each moment of a parameter is kept by; None where it is float32."""
        return self._quantisers if parameter.numel() >= _SMALLEST else dict.fromkeys(_MOMENTS)


def moment_quantisers(bits: int) -> dict[str, Quantiser | None]:
    """What both moments are kept by in 8 or 4 bits; None in 32."""
    if bits == 8:
        return {"exp_avg": Quantiser(8, 256, signed=True), "exp_avg_sq": Quantiser(8, 256, signed=False)}
    if bits == 4:
        second = Quantiser(4, 128, signed=False, linear=True)
        return {"exp_avg": Quantiser(4, 128, signed=True), "exp_avg_sq": second}
    return dict.fromkeys(_MOMENTS)


class _Moment:
    """One moment of a parameter, read and written in float32, (n,) at a time, however and wherever it is kept."""

    def __init__(
        self, optimizer: AdamW, name: str, state: dict[str, Any], quantiser: Quantiser | None, parameter: Tensor
    ) -> None:
        self._optimizer, self._quantiser, self._device = optimizer, quantiser, parameter.device
        if quantiser is None:
            if state[name].stride() != parameter.stride():  # As it was in a checkpoint.
                room = optimizer.room(parameter.shape, parameter.stride(), torch.float32, parameter.device)
                state[name] = room.copy_(state[name])
            self._values = flat(state[name], parameter)
        else:
            self._codes, self._scales = state[name], state[f"{name}_scale"]

    def read(self, chunk: slice) -> Tensor:
        """A part of it; the state itself where that is float32 and on the card."""
        fetch, device = self._optimizer.fetch, self._device
        if self._quantiser is None:
            return fetch(self._values[chunk], device)
        codes, scales = _slices(self._quantiser, chunk)
        count = chunk.stop - chunk.start
        return self._quantiser.unpack(fetch(self._codes[codes], device), fetch(self._scales[scales], device), count)

    def write(self, chunk: slice, values: Tensor) -> None:
        """Keep what became of the part that was read."""
        if self._quantiser is None:
            self._optimizer.put_back(self._values[chunk], values)
            return
        parts = zip((self._codes, self._scales), _slices(self._quantiser, chunk), strict=True)
        for (kept, own), packed in zip(parts, self._quantiser.pack(values), strict=True):
            kept[own].copy_(packed, non_blocking=True)


def _adamw_(
    weights: Tensor, gradient: Tensor, m: Tensor, v: Tensor, group: dict[str, Any], step: int, surprise: Tensor | None
) -> None:
    """One step, in place: of the weights and of both moments, (n,) float32 each.

    The learning rate is divided by `surprise`, (), on the weights' device.
    """
    (beta1, beta2), lr = group["betas"], group["lr"]
    decay = lr * group["weight_decay"]
    weights.mul_(1 - (decay if surprise is None else decay / surprise))
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    if surprise is not None:
        denominator.mul_(surprise)
    weights.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


def _surprise(gradients: Tensor, moment: _Moment, group: dict[str, Any], step: int) -> Tensor:
    """max(1, RMS of g / sqrt(v)), (), where it is computed: a number of ours would wait for it."""
    beta2, smallest = group["betas"][1], group["eps"] ** 2
    total = torch.zeros((), device=gradients.device)
    for chunk in _chunks(gradients):
        square = gradients[chunk].float().square()
        v = torch.add(moment.read(chunk) * beta2, square, alpha=1 - beta2).div_(1 - beta2**step)
        total += square.div_(v.clamp_min_(smallest)).sum()
    return (total / len(gradients)).sqrt_().clamp_min_(1.0)


def _chunks(values: Tensor) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, len(values))) for start in range(0, len(values), CHUNK))


def _slices(quantiser: Quantiser, chunk: slice) -> tuple[slice, slice]:
    """Where the codes and the scales of a chunk are; chunks begin at a block."""
    starts, stops = quantiser.sizes(chunk.start), quantiser.sizes(chunk.stop)
    return slice(starts[0], stops[0]), slice(starts[1], stops[1])
