"""Two recordings of one step beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Of losses and what is given; of gradients, which are sums of many more.
TOLERANCE, OF_GRADIENTS = 1e-6, 1e-5


@dataclass(frozen=True)
class Comparison:
    """How far one recording is from another.

    Attributes:
        theirs, ours: losses.
        given: largest difference in what the denoiser was given, by the largest value of the tensor in question.
        gradient: length of the difference of the gradients of all weights, by the length of theirs.
        unlike: what the denoiser was given otherwise, in words.
    """

    theirs: float
    ours: float
    given: float
    gradient: float
    unlike: tuple[str, ...]

    @property
    def absolute(self) -> float:
        """Difference of the losses."""
        return abs(self.ours - self.theirs)

    @property
    def relative(self) -> float:
        """By theirs."""
        return self.absolute / abs(self.theirs)

    @property
    def agree(self) -> bool:
        return self.relative <= TOLERANCE and self.gradient <= OF_GRADIENTS and not self.unlike


def compare(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Comparison:
    """Recordings by the names of `recorder`; what of `given` either lacks, or is further apart than the tolerance, is
    unlike."""
    unlike, largest = [], 0.0
    for name in sorted(name for name in {*theirs, *ours} if name.startswith("given.")):
        title = name.removeprefix("given.")
        if name not in ours or name not in theirs:
            unlike.append(f"{title} is given by {'them' if name in theirs else 'us'} alone")
        elif theirs[name].shape != ours[name].shape:
            unlike.append(f"{title} is {tuple(theirs[name].shape)}, ours {tuple(ours[name].shape)}")
        else:
            apart = _apart(theirs[name], ours[name])
            largest = max(largest, apart)
            if apart > TOLERANCE:
                unlike.append(f"{title} differs by {apart:.2g}")
    return Comparison(
        float(theirs["loss"]), float(ours["loss"]), largest, _gradients_apart(theirs, ours), tuple(unlike)
    )


def _apart(theirs: Tensor, ours: Tensor) -> float:
    theirs, ours = theirs.double(), ours.double()
    return float((theirs - ours).abs().max() / theirs.abs().max().clamp_min(torch.finfo(torch.double).tiny))


def _gradients_apart(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> float:
    names = [name for name in {*theirs, *ours} if name.startswith("gradient.")]
    apart, length = 0.0, 0.0
    for name in names:
        their = theirs[name] if name in theirs else torch.zeros_like(ours[name])
        our = ours[name] if name in ours else torch.zeros_like(their)
        apart += float((their.double() - our.double()).square().sum())
        length += float(their.double().square().sum())
    return (apart / length) ** 0.5 if length else float("inf")
