"""Blockwise quantisation of optimizer states to 8 or 4 bits (arXiv 2110.02861, 2309.01507).

A block of consecutive values has one scale, the largest magnitude in it; each value is kept as the place, in a fixed
list of numbers from -1 to 1 or 0 to 1, of the number nearest to value / scale. The list is dynamic where what is kept
spans orders of magnitude: its numbers lie the denser the smaller they are. For second moments in 4 bits it is linear.

Neither list of second moments has a zero. They are what updates are divided by the root of, and a moment that became
zero beside large ones in its block would make the next update of that weight a hundred times too large.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class Quantiser:
    """How the values of a state are kept.

    Args:
        bits: 8 or 4; in 4 bits, two values share a byte.
        block: consecutive values with one float32 scale: a value takes bits / 8 + 4 / block bytes.
        signed: whether values can be negative.
        linear: whether the numbers are evenly spaced.
    """

    def __init__(self, bits: int, block: int, *, signed: bool, linear: bool = False) -> None:
        self.bits, self.block = bits, block
        self._numbers = _linear_numbers(bits) if linear else _dynamic_numbers(bits, signed)
        self._placed: dict[torch.device, _Numbers] = {}

    @property
    def zero(self) -> int:
        """The byte of zeros."""
        code = min(range(len(self._numbers)), key=lambda code: abs(self._numbers[code]))
        return code | code << 4 if self.bits == 4 else code

    def sizes(self, count: int) -> tuple[int, int]:
        """Of codes and scales for so many values."""
        return -(-count * self.bits // 8), -(-count // self.block)

    def pack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of values.

        Args:
            values: (n,) float32.

        Returns:
            uint8 (n,), or (ceil(n / 2),) in 4 bits, the first of two values in the lower half of a byte; and float32
            (ceil(n / block),).
        """
        missing = -len(values) % self.block
        blocks = (F.pad(values, (0, missing)) if missing else values).view(-1, self.block)
        scales = blocks.abs().amax(1)
        # Where all are zero, so is the scale.
        shares = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        codes = self._on(values.device).places(shares.view(-1))
        if self.bits == 8:
            return codes[: len(values)], scales
        pairs = codes.view(torch.int16)  # The first in the lower byte.
        return (pairs | pairs >> 4).to(torch.uint8)[: -(-len(values) // 2)], scales

    def unpack(self, codes: Tensor, scales: Tensor, count: int) -> Tensor:
        """What was kept: (count,) float32."""
        if self.bits == 4:
            pairs = codes.to(torch.int16)
            codes = (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F).view(torch.uint8)
        codes = F.pad(codes, (0, len(scales) * self.block - len(codes)))
        values = self._on(codes.device).numbers.index_select(0, codes.int()).view(-1, self.block)
        return values.mul_(scales.unsqueeze(1)).view(-1)[:count]

    def _on(self, device: torch.device) -> _Numbers:
        if device not in self._placed:
            self._placed[device] = _Numbers(torch.tensor(self._numbers, device=device))
        return self._placed[device]


class _Numbers:
    """Fixed numbers, and which of them is nearest.

    Floats that share their upper 16 bits are so close to each other that at most one midpoint of neighbours is among
    them. So those bits look up where the first of them belongs, and one comparison does the rest: what a binary search
    finds, in a fiftieth of the time on a CPU.

    Args:
        numbers: float32 (2^bits,), ascending, on a device.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        midpoints = (numbers[1:] + numbers[:-1]) / 2
        upper = torch.arange(1 << 16, dtype=torch.int32, device=numbers.device) << 16
        # Of negative numbers, the smallest is the one with the largest bits.
        smallest = torch.where(upper < 0, upper | 0xFFFF, upper).view(torch.float32)
        self._first = torch.bucketize(smallest, midpoints, out_int32=True).to(torch.uint8)
        self._next = F.pad(midpoints, (0, 1), value=torch.inf)

    def places(self, values: Tensor) -> Tensor:
        """Of the number nearest to each value, (n,) uint8; of NaN, the last."""
        places = self._first.index_select(0, (values.view(torch.int32) >> 16).bitwise_and_(0xFFFF))
        return places.add_(values > self._next.index_select(0, places.int()))


def _linear_numbers(bits: int) -> list[float]:
    """k / 2^bits, k from 1 to 2^bits."""
    return [k / 2**bits for k in range(1, 2**bits + 1)]


def _dynamic_numbers(bits: int, signed: bool) -> list[float]:
    """The 2^bits numbers of the dynamic tree code, ascending; without zero, one less, where none is negative.

    Its leading zeros are an exponent to base 10; the bits behind them divide the decade from 0.1 to 1 evenly.
    """
    positive = []
    for length in range(bits - 1):
        parts = 2**length if signed else 2 ** (length + 1)
        positive += [10.0 ** (length + 2 - bits) * (0.1 + 0.9 * (k + 0.5) / parts) for k in range(parts)]
    return sorted([*positive, 1.0, *([0.0, *(-number for number in positive)] if signed else [])])
