"""Prior preservation: samples of the class, paired with those of the subject (arXiv 2208.12242, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from twostage.method.examples import Batch, PriorBatch, Source


class Prior(Protocol):
    """What the class is held to: an endless, addressable sequence of prior samples.

    Attributes:
        prompts: every prompt they can come with.
    """

    prompts: list[str]

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> PriorBatch:
        """One prior sample for each row of `Examples.batch`; its draws have nothing to do with that row's."""


@dataclass(frozen=True)
class Preserving:
    """A source of batches, each sample with a prior one."""

    source: Source
    prior: Prior

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        batch = self.source.batch(stage, step, rows, rows_per_step)
        return replace(batch, prior=self.prior.batch(stage, step, rows, rows_per_step))
