"""Metrics, one file each, found by file name. A metric is a module of this folder that defines

FIGURES     name of a figure -> function of `Material` that returns it, or raises LeftOut where it cannot be had

and says in its docstring what is computed, its range, which way is better, and the paper or equation.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module

from twostage.evaluation.figures import Figure, LeftOut
from twostage.evaluation.material import Material

Measure = Callable[[Material], Figure]


@cache
def all_figures() -> dict[str, Measure]:
    """Every figure of every metric by name, in the order of the modules' names."""
    found: dict[str, Measure] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        found.update(import_module(f"{__name__}.{module}").FIGURES)
    return found


def measure(material: Material) -> tuple[list[Figure], dict[str, str]]:
    """All figures that can be had, and of the others why not."""
    figures: list[Figure] = []
    left_out: dict[str, str] = {}
    for name, figure in all_figures().items():
        try:
            figures.append(figure(material))
        except LeftOut as error:
            left_out[name] = str(error)
    return figures, left_out
