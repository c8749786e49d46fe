"""What many runs say together: a figure of each strategy with its interval, and differences of strategies.

Figures are pooled over prompts, then over the seeds of a subject, then over subjects, each subject counting the same.
Differences are paired: prompt by prompt, within the same subject and seed, so what makes a subject or prompt hard
for everybody drops out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np

from twostage.evaluation import bootstrap
from twostage.evaluation.bootstrap import hierarchical, paired_difference
from twostage.report.glossary import IDENTITY_FIGURES, ordered
from twostage.report.reading import Measured, Run, comparable, same_choices

BASE, REAL = "untouched base", "real photos"
COSTS = {
    "train_seconds": "Training time",
    "peak_memory_bytes": "Peak memory",
    "result_bytes": "Result on disk",
}

Cell = tuple[str, int]
# By subject and training seed: one value a prompt.
Values = dict[Cell, list[float]]


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval (None where one value says nothing of the spread), and of how many runs."""

    value: float
    low: float | None
    high: float | None
    runs: int

    @property
    def turned(self) -> Estimate:
        """Of a difference: the other way round."""
        low, high = (None, None) if self.low is None or self.high is None else (-self.high, -self.low)
        return Estimate(-self.value, low, high, self.runs)

    @property
    def decided(self) -> bool:
        """Of a difference: whether its interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class FigureInfo:
    """What all runs agree on about a figure."""

    name: str
    title: str
    better: Literal["higher", "lower", "neither"]
    range: tuple[float | None, float | None]


class Pool:
    """Runs grouped by strategy.

    Args:
        runs: at least one.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        assert runs
        self.runs = runs
        self._cells: dict[str, dict[Cell, Run]] = {}
        for run in runs:
            self._cells.setdefault(run.strategy, {})[run.cell] = run
        self._estimates: dict[tuple[str, str], Estimate | None] = {}
        self._differences: dict[tuple[str, str, str], Estimate | None] = {}

    @cached_property
    def figures(self) -> dict[str, FigureInfo]:
        """Every figure that some run has, in the order of the glossary."""
        found: dict[str, Measured] = {}
        for run in self.runs:
            for name, figure in run.document.figures.items():
                found.setdefault(name, figure)
        return {
            name: FigureInfo(name, found[name].title, found[name].better, found[name].range)
            for name in ordered(set(found))
        }

    @cached_property
    def strategies(self) -> list[str]:
        """Best on identity first; without such a figure, as they were given."""
        names = list(self._cells)
        headline = self.first(IDENTITY_FIGURES)
        if headline is None:
            return names
        values = {name: self.estimate(name, headline) for name in names}
        return sorted(names, key=lambda name: -(e.value if (e := values[name]) else -np.inf))

    @cached_property
    def subjects(self) -> list[str]:
        """In the order they were given."""
        return list(dict.fromkeys(run.subject for run in self.runs))

    @cached_property
    def seeds(self) -> list[int]:
        """Training seeds."""
        return sorted({run.seed for run in self.runs})

    def cells_of(self, strategy: str) -> Mapping[Cell, Run]:
        """Its runs by subject and seed."""
        return self._cells[strategy]

    def first(self, names: Sequence[str]) -> str | None:
        """The first of these figures that any run has."""
        return next((name for name in names if name in self.figures), None)

    def estimate(self, strategy: str, figure: str) -> Estimate | None:
        """A figure of one strategy, or of BASE or REAL; None where it was not measured."""
        key = strategy, figure
        if key not in self._estimates:
            self._estimates[key] = pooled(self._cell_values(strategy, figure))
        return self._estimates[key]

    def cost(self, strategy: str, name: str) -> Estimate | None:
        """Mean of a cost over the strategy's runs; None where no run knows it."""
        known = [getattr(run.document.result, name) for run in self._cells[strategy].values()]
        known = [value for value in known if value is not None]
        return Estimate(float(np.mean(known)), min(known), max(known), len(known)) if known else None

    def difference(self, first: str, second: str, figure: str) -> Estimate | None:
        """`first` less `second` (a strategy or BASE), paired; None where no two runs can be compared."""
        key = first, second, figure
        if key not in self._differences:
            mine, theirs = self._pairs_of(first, second, figure)
            found = _estimate(paired_difference(mine, theirs, resamples=RESAMPLES), mine) if mine else None
            self._differences[key] = found
            self._differences[second, first, figure] = found and found.turned
        return self._differences[key]

    @property
    def charted(self) -> list[str]:
        """The strategies that charts show: of very many the best on identity."""
        return self.strategies[:MANY]

    def all_differences(self) -> list[tuple[str, str, str, Estimate]]:
        """Figure, first, second and their difference, of every two strategies; of very many, of the charted ones."""
        return [
            (figure, first, second, found)
            for figure in self.figures
            for first, second in combinations(self.charted, 2)
            if (found := self.difference(first, second, figure))
        ]

    def leaders(self, figure: str) -> tuple[str | None, list[str]]:
        """The strategy with the best value, and those that cannot be told from it.

        Values are those on subjects and seeds that all of them have, if there are such: a strategy that was run on
        easy subjects alone leads nowhere.
        """
        info = self.figures[figure]
        measured = self._on_common_cells(figure)
        if info.better == "neither" or not measured:
            return None, []
        sign = 1 if info.better == "higher" else -1
        leader = max(measured, key=lambda name: sign * measured[name])
        tied = []
        for name in measured:
            if name != leader:
                gap = self.difference(leader, name, figure)
                if gap is None or not gap.decided or sign * gap.value < 0:
                    tied.append(name)
        return leader, tied

    def _on_common_cells(self, figure: str) -> dict[str, float]:
        values = {name: self._cell_values(name, figure) for name in self.strategies}
        values = {name: cells for name, cells in values.items() if cells}
        common = set.intersection(*map(set, values.values())) if values else set()
        return {
            name: hierarchical({cell: cells[cell] for cell in common or cells}, resamples=1).value
            for name, cells in values.items()
        }

    def front(self, across: str, up: str) -> list[str]:
        """The Pareto front: strategies that no other one beats on both figures, by `across`; higher is better."""
        points = {
            name: (x.value, y.value)
            for name in self.strategies
            if (x := self.estimate(name, across)) and (y := self.estimate(name, up))
        }
        kept = [
            name
            for name, (x, y) in points.items()
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
        ]
        return sorted(kept, key=points.__getitem__)

    def unequal_choices(self) -> list[str]:
        """Names of the choices in which runs of the same subject and seed differ."""
        names: set[str] = set()
        by_cell: dict[Cell, Run] = {}
        for run in self.runs:
            other = by_cell.setdefault(run.cell, run)
            if not same_choices(run, other):
                mine, theirs = comparable(run), comparable(other)
                names |= {name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)}
        return sorted(names)

    def _cell_values(self, strategy: str, figure: str) -> Values:
        if strategy not in (BASE, REAL):
            runs = self._cells[strategy].items()
            return {cell: _values(told) for cell, run in runs if (told := run.document.figures.get(figure))}
        row = "base" if strategy == BASE else "real"
        found: dict[Cell, list[float]] = {}
        for run in self.runs:
            # It is the same for every strategy and training seed of a subject: one run of each subject says it.
            if told := getattr(run.document, row).get(figure):
                found.setdefault((run.subject, 0), _values(told))
        return found

    def _pairs_of(self, first: str, second: str, figure: str) -> tuple[Values, Values]:
        """Values of both on the cells in which they can be compared."""
        ours: Values = {}
        others: Values = {}
        for cell, run in self._cells[first].items():
            other = None if second == BASE else self._cells[second].get(cell)
            theirs = run.document.base.get(figure) if second == BASE else _same_way(run, other, figure)
            mine = run.document.figures.get(figure)
            if mine and theirs and len(mine.values) == len(theirs.values):
                ours[cell], others[cell] = _values(mine), _values(theirs)
        return ours, others


def _same_way(run: Run, other: Run | None, figure: str) -> Measured | None:
    return other.document.figures.get(figure) if other and same_choices(run, other) else None


def _values(figure: Measured) -> list[float]:
    return list(figure.values or (figure.value,))


RESAMPLES = 1000
# Strategies of which every two are compared, and that a chart and a list still tell apart.
MANY = 24
# Of fewer values the bootstrap's interval is little more than their range, and would tell what is chance for real.
FEWEST = 5


def pooled(cells: Values) -> Estimate | None:
    """Mean and interval of the values of each cell by prompt; None where there is no cell."""
    return _estimate(hierarchical(cells, resamples=RESAMPLES), cells) if cells else None


def _estimate(found: bootstrap.Estimate, cells: Values) -> Estimate:
    """Of the values of those cells, which may be too few for an interval."""
    if sum(map(len, cells.values())) < FEWEST:
        return Estimate(found.value, None, None, len(cells))
    return Estimate(found.value, found.low, found.high, len(cells))
