"""What text encoders make of prompts, and the denoiser is asked with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor


class PromptStates(Mapping[str, Tensor]):
    """Named tensors with one row a prompt: the states of its tokens, and what else the family's denoiser is told of it.

    Args:
        tensors: of equally many rows; "states" is (prompts, tokens, D), others are as the family has them.
    """

    def __init__(self, **tensors: Tensor) -> None:
        assert len({len(tensor) for tensor in tensors.values()}) == 1, {n: t.shape for n, t in tensors.items()}
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def count(self) -> int:
        """Of the prompts."""
        return len(next(iter(self._tensors.values())))

    @property
    def device(self) -> torch.device:
        return next(iter(self._tensors.values())).device

    def each(self, change: Callable[[Tensor], Tensor]) -> PromptStates:
        """Every tensor changed; all keep equally many rows."""
        return PromptStates(**{name: change(tensor) for name, tensor in self._tensors.items()})

    def rows(self, places: Sequence[int] | Tensor | slice) -> PromptStates:
        """Those of some prompts."""
        return self.each(lambda tensor: tensor[places])

    def repeated(self, times: int) -> PromptStates:
        """All prompts, so often one after the other."""
        return self.each(lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)))

    def split(self) -> list[PromptStates]:
        """One each."""
        return [self.rows(slice(place, place + 1)) for place in range(self.count)]

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> PromptStates:
        """On a device, and what is floating point in a number format."""
        return self.each(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))


def joined(parts: Iterable[PromptStates]) -> PromptStates:
    """Those of several groups of prompts, one after the other."""
    found = list(parts)
    return PromptStates(**{name: torch.cat([part[name] for part in found]) for name in found[0]})
