"""Stochastic rounding of float32 to bfloat16, with draws that are addressed like all others of a run.

bfloat16 has 8 significant bits: neighbours are 0.4 to 0.8 % of a weight apart, and the updates of fine-tuning are far
smaller. Rounded to the nearest, most of them leave no trace (at a learning rate of 1e-6, 97 %); rounded up or down with
probabilities in proportion, each does on average (arXiv 2010.06192, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Bits of a float32 that a bfloat16 lacks.
_CUT = 16


def generator_at(address: Sequence[int], device: torch.device) -> torch.Generator:
    """A generator on the device whose draws belong to the address, and to no other.

    Args:
        address: the run's seed and what else tells these draws from the run's others; integers of at least 0.
        device: two kinds of device draw different numbers; one kind always the same.
    """
    # The spawn key keeps these draws apart from those of `method.examples` and `method.seeding`.
    seed = np.random.SeedSequence(list(address), spawn_key=(1,)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))


def round_stochastically_(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round to bfloat16's numbers, up or down so that the expectation is the value itself; in place.

    Args:
        values: float32, of any shape. What bfloat16 holds already, infinity and NaN stay.
        generator: on their device; gives as many draws as there are values.

    Returns:
        `values`, each of them now one that bfloat16 holds.
    """
    bits = values.view(torch.int32)
    drawn = torch.randint(0, 1 << _CUT, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    # A carry out of a NaN's bits would make a number of it.
    drawn.masked_fill_(~values.isfinite(), 0)
    bits.add_(drawn).bitwise_and_(-(1 << _CUT))
    return values
