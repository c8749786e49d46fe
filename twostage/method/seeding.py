"""Draws that torch makes by itself, a fresh adapter's and dropout's: addressed like all others of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*address: int) -> Iterator[None]:
    """Within it, torch draws what belongs to the address; afterwards it goes on as if nothing had been drawn.

    Args:
        address: the run's seed and what else tells this draw from the run's others; integers of at least 0.
    """
    # The spawn key keeps these draws apart from those of `examples`, whose addresses have none.
    sequence = np.random.SeedSequence(list(address), spawn_key=(0,))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield
