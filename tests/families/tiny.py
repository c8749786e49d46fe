"""Tiny random bases of every family, as the tests of the families name them."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

from twostage import families

Write = Callable[[Path], object]


@cache
def writers() -> dict[str, Write]:
    """What writes each base, by its name: BASES of the test that each family's file has, `test_<name of the file>.py`.

    Raises:
        ModuleNotFoundError, AttributeError: a family has no test, or its test names no base.
    """
    found: dict[str, Write] = {}
    for family in pkgutil.iter_modules(families.__path__):
        found |= import_module(f"tests.families.test_{family.name}").BASES
    return found
