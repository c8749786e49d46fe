"""Offset noise: a base learns to make a picture darker or brighter as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from twostage.method.examples import OFFSETS, Batch, Source


@dataclass(frozen=True)
class OffsetNoise:
    """A source of batches whose noise is not zero on average: to each channel of a sample one further draw is added.

    So the denoiser learns to move the mean of a picture, which plain noise leaves visible to the last level.

    Attributes:
        source: of the batches.
        scale: of the further draw, a standard normal one.
        seed: of the run.
    """

    source: Source
    scale: float
    seed: int

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """Rows of one optimizer step; all but their noise is what `source` gives."""
        batch = self.source.batch(stage, step, rows, rows_per_step)
        channels = batch.noise.shape[1]
        draws = [np.random.default_rng([OFFSETS, self.seed, stage, step, row]).normal(size=channels) for row in rows]
        offsets = torch.from_numpy(np.stack(draws)).to(batch.noise)
        return replace(batch, noise=batch.noise + self.scale * offsets[:, :, None, None])
