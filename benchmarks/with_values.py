"""A rehearsal with values: the product's own stages on random weights, on the GPU where there is one.

For benchmarks of bases whose weights need not be at hand, and of those that are known by size alone.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import nn

from twostage.memory.storages import StorageTrace
from twostage.planning.outlined import OutlinedBase, outline_base
from twostage.planning.rehearsal import Rehearsal
from twostage.processes import forget_accelerators
from twostage.quiet import quiet
from twostage.recipe import Recipe


class RandomBase(OutlinedBase):
    """A base of random weights; prompts are not read.

    Attributes:
        dtype: of the weights.
        trace: counts them, where there is one.
    """

    dtype: torch.dtype = torch.float32
    trace: StorageTrace | None = None

    @classmethod
    def of(cls, name: str, dtype: torch.dtype = torch.float32, trace: StorageTrace | None = None) -> Self:
        """The base that `outline_base` takes by that name."""
        found = outline_base(name)
        base = cls(found.source, found.folder, found.family, found.resolution, found.reduction)
        base.dtype, base.trace = dtype, trace
        return base

    def component(self, name: str) -> Any:
        if name not in self._loaded and name not in self.family.tokenizers:
            with quiet():
                net = self.outline(name).to(self.dtype).to_empty(device="cpu").requires_grad_(False).eval()
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point():
                    nn.init.normal_(tensor, std=0.02)
                else:
                    nn.init.zeros_(tensor)
            if self.trace:
                self.trace.watch([*net.parameters(), *net.buffers()])
            self._loaded[name] = net
        return super().component(name)


class WithValues(Rehearsal):
    """A session that writes nothing and runs its stages on the GPU, where there is one."""

    def __init__(self, recipe: Recipe, base: RandomBase) -> None:
        forget_accelerators()  # Those made before may be of another precision.
        super().__init__(recipe, base, StorageTrace())
        forget_accelerators()  # A rehearsal's is the CPU's, and all that follow would be like it.
        self.accelerator = Accelerator(mixed_precision=self.recipe.mixed_precision)
        self.device = self.accelerator.device
