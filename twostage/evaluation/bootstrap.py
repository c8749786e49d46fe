"""How far a mean would move with other prompts, seeds and subjects: percentile bootstrap (Efron, 1979).

The same values and seed always give the same interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# (subject, training seed) -> one value for each prompt.
Cells = Mapping[tuple[str, int], Sequence[float]]
# Resamples in memory together. Part of what the random draws depend on.
_TOGETHER = 100
# Drawn values in memory together, where the draws do not depend on how many those are.
_VALUES = 2**20


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        value: mean over subjects of the mean over seeds of the mean over prompts.
        low, high: bounds of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """How much higher A is than B on the same cells.

    Attributes:
        share: of resamples in which A is the higher one, 0..1, a tie counting for half. Where lower is better, A
            beats B in the others, 1 - `share`.
    """

    share: float


def interval(values: Sequence[float], resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of `values` over prompts.

    Args:
        values: one for each prompt, at least two.
        resamples: how often prompts are drawn anew, with replacement.
        level: share of the resampled means inside, 0..1.
        seed: of the draws.
    """
    assert len(values) > 1, "one value has no interval"
    given = np.asarray(values, dtype=np.float64)
    rng, together = np.random.default_rng(seed), max(1, _VALUES // len(given))
    means = [
        given[rng.integers(len(given), size=(min(together, resamples - start), len(given)))].mean(axis=1)
        for start in range(0, resamples, together)
    ]
    return _bounds(np.concatenate(means), level)


def hierarchical(cells: Cells, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean and interval of a strategy: subjects are drawn anew, of each its seeds, and its prompts for all of those.

    Prompts of one subject move together, and so do subjects of one strategy: drawing all values as equals would make
    the interval too narrow.

    Args:
        cells: of the strategy, at least one.
        resamples, level, seed: as of `interval`.
    """
    padded = _Padded(cells)
    return Estimate(padded.mean(), *_bounds(padded.resampled(resamples, seed), level))


def paired_difference(a: Cells, b: Cells, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Difference:
    """A less B, prompt by prompt, on the cells that both have, drawn anew as by `hierarchical`.

    Pairs cancel what is hard for both: the interval is narrower than those of A and B together suggest.

    Args:
        a, b: of the two strategies, with at least one cell in common; the prompts of a cell are the same in both.
        resamples, level, seed: as of `interval`.
    """
    common = [key for key in a if key in b]
    padded = _Padded({key: [x - y for x, y in zip(a[key], b[key], strict=True)] for key in common})
    means = padded.resampled(resamples, seed)
    share = float((means > 0).mean() + (means == 0).mean() / 2)
    return Difference(padded.mean(), *_bounds(means, level), share)


class _Padded:
    """Cells as an array (subjects, seeds, prompts), with how many seeds and prompts there are of each."""

    def __init__(self, cells: Cells) -> None:
        assert cells and all(len(values) for values in cells.values()), "there must be a value in each cell"
        subjects: dict[str, list[Sequence[float]]] = {}
        for subject, seed in sorted(cells):
            subjects.setdefault(subject, []).append(cells[subject, seed])
        groups = list(subjects.values())
        self.seeds = np.array([len(group) for group in groups])
        self.prompts = np.ones((len(groups), self.seeds.max()), dtype=np.int64)
        self.values = np.zeros((*self.prompts.shape, max(len(values) for values in cells.values())))
        for i, group in enumerate(groups):
            for j, values in enumerate(group):
                self.prompts[i, j] = len(values)
                self.values[i, j, : len(values)] = values

    def mean(self) -> float:
        subjects = np.arange(len(self.seeds))[None]
        seeds = np.broadcast_to(np.arange(self.prompts.shape[1]), (1, *self.prompts.shape))
        prompts = np.broadcast_to(np.arange(self.values.shape[2]), (1, *self.values.shape))
        return float(self._means(subjects, seeds, prompts)[0])

    def resampled(self, resamples: int, seed: int) -> NDArray[np.float64]:
        """The mean of each resample."""
        rng = np.random.default_rng(seed)
        return np.concatenate([self._means(*drawn) for drawn in self._draws(rng, resamples)])

    def _draws(self, rng: np.random.Generator, resamples: int) -> Iterator[tuple[NDArray[np.int64], ...]]:
        count, (most_seeds, most_prompts) = len(self.seeds), self.values.shape[1:]
        for start in range(0, resamples, _TOGETHER):
            shape = (min(_TOGETHER, resamples - start), count)
            subjects = rng.integers(count, size=shape)
            seeds = (rng.random((*shape, most_seeds)) * self.seeds[subjects][..., None]).astype(np.int64)
            there = self.prompts[subjects[..., None], seeds][..., None]
            # All seeds of a subject answer the same prompts: what is hard about one is hard for all of them, so the
            # same are drawn for all. Each its own would let seeds pass for more prompts.
            yield subjects, seeds, (rng.random((*shape, 1, most_prompts)) * there).astype(np.int64)

    def _means(
        self, subjects: NDArray[np.int64], seeds: NDArray[np.int64], prompts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Of what was drawn, places beyond the seeds and prompts that there are left out.

        Args:
            subjects: (R, S).
            seeds: (R, S, K), of each subject drawn.
            prompts: (R, S, K, P), of each seed drawn.

        Returns:
            (R,).
        """
        at = subjects[..., None], seeds
        values = self.values[at[0][..., None], at[1][..., None], prompts]
        counted = np.arange(values.shape[-1]) < self.prompts[at][..., None]
        by_seed = (values * counted).sum(axis=-1) / counted.sum(axis=-1)
        counted = np.arange(by_seed.shape[-1]) < self.seeds[subjects][..., None]
        by_subject = (by_seed * counted).sum(axis=-1) / counted.sum(axis=-1)
        means: NDArray[np.float64] = by_subject.mean(axis=-1)
        return means


def _bounds(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
