"""What a metric says: a figure with its range, which way is better, and the values it is the mean of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: as in files and tables: "dino_unseen".
        title: for people: "DINO, held-out photos".
        values: one for each of `prompts`, or a single one of the whole run.
        prompts: what the values belong to, one more than once where each of its pictures counts; empty for a single
            value.
        lowest, highest: the range by definition; infinite where there is no bound.
        better: which way.
    """

    name: str
    title: str
    values: tuple[float, ...]
    lowest: float
    highest: float
    better: Better
    prompts: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        assert self.values and len(self.values) == max(len(self.prompts), 1)

    @property
    def value(self) -> float:
        """The mean of the values."""
        return float(np.mean(self.values))


class LeftOut(Exception):
    """Why a metric has no figure here, in a few words and with what to do: "one photo only: none is held out"."""


def dump_figure(figure: Figure, interval: tuple[float, float] | None) -> dict[str, Any]:
    """For evaluation.json; infinite bounds become None."""

    def bound(value: float) -> float | None:
        return value if np.isfinite(value) else None

    return {
        "title": figure.title,
        "value": figure.value,
        "interval": list(interval) if interval else None,
        "range": [bound(figure.lowest), bound(figure.highest)],
        "better": figure.better,
        "values": list(figure.values),
        "prompts": list(figure.prompts),
    }


def by_prompt(scores: Sequence[float], places: Sequence[int]) -> tuple[float, ...]:
    """Mean score of each prompt, in the order of the prompts.

    Args:
        scores: one a picture.
        places: which prompt each picture was drawn for; 0, 1, ... without a gap.
    """
    given = np.asarray(scores)
    return tuple(float(np.mean(given[group])) for group in of_prompts(places))


def of_prompts(places: Sequence[int]) -> list[NDArray[np.int64]]:
    """Which pictures were drawn for each prompt, in the order of the prompts; `places` as of `by_prompt`."""
    counts = np.bincount(places)
    return np.split(np.argsort(places, kind="stable"), counts.cumsum()[:-1])
