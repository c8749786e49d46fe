"""What is wrong with a recipe, in words for the person who wrote it: one line per mistake.

pydantic finds the mistakes; here they get the place they came from, the value, and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from twostage.recipe import AnotherSubject, Recipe, Section

Path = tuple[str, ...]
"""Where an option stands: ("stage2", "learning_rate")."""

Origins = Mapping[Path, str]
"""Which file, table or flag an option's value came from; a table's origin stands for what it holds."""


def section_of(annotation: Any) -> type[Section] | None:
    """The section class behind a field's annotation (`Stage1 | None` gives Stage1), or None for a plain value."""
    choices = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((c for c in choices if isinstance(c, type) and issubclass(c, Section)), None)


def sections() -> dict[str, type[Section]]:
    """The recipe's tables by name, in the order they are declared."""
    found = {name: section_of(field.annotation) for name, field in Recipe.model_fields.items()}
    return {name: section for name, section in found.items() if section is not None}


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean X?' when one of the known names is close to this one, else nothing."""
    match = get_close_matches(name.replace("-", "_").lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def suggest(path: Path) -> str:
    """The option somebody most likely meant by a name that does not exist, looked for where they wrote it first."""
    *table, name = path
    here = sections().get(table[0]) if table else Recipe
    if here and (hint := nearest(name, list(here.model_fields))):
        return hint
    elsewhere: dict[str, list[str]] = {option: [option] for option in Recipe.model_fields}
    for title, section in sections().items():
        for option in section.model_fields:
            elsewhere.setdefault(option, []).append(f"{title}.{option}")
    match = get_close_matches(name.replace("-", "_").lower(), list(elsewhere), n=1, cutoff=0.75)
    return f"; did you mean {' or '.join(elsewhere[match[0]])}?" if match else ""


def mistakes(error: ValidationError, origins: Origins, default_origin: str) -> list[tuple[Path, str]]:
    """Word every mistake pydantic found.

    Args:
        error: from validating a recipe.
        origins: where each option's value came from.
        default_origin: whom to name for what nobody gave: the recipe file.

    Returns:
        One (path, line) per mistake; the line names origin, option, value and remedy.
    """
    return [_word(detail, origins, default_origin) for detail in error.errors(include_url=False)]


def _word(detail: ErrorDetails, origins: Origins, default_origin: str) -> tuple[Path, str]:
    path = tuple(str(part) for part in detail["loc"])
    origin = origin_of(path, origins) or default_origin
    kind, name = detail["type"], dotted(path)
    if kind == "extra_forbidden":
        return path, f"{origin}: there is no option {name}{suggest(path)}"
    if kind == "missing":
        return path, f"{origin}: {name} is missing: {_help(path)}"
    if kind in ("model_type", "model_attributes_type"):
        return path, f"{origin}: {name} = {detail['input']!r}: must be a table: write [{name}] and its options below it"
    if kind == "value_error":  # ours, from a validator; it names its options itself
        return path, ": ".join(filter(None, (origin, name, detail["msg"].removeprefix("Value error, "))))
    # A flag's name already is the option's, and what the user typed is better than what we call it.
    subject = (
        f"{origin} {show(detail['input'])}"
        if origin.startswith("--")
        else f"{origin}: {name} = {show(detail['input'])}"
    )
    return path, f"{subject}: {_remedy(detail)}"


def _remedy(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    bounds = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be above {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be below {lt}",
        "multiple_of": "must be a multiple of {multiple_of}",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "string_too_short": "must not be empty",
        "tuple_type": 'must be a list: ["...", "..."]',
    }
    if kind == "tuple_type" and detail["loc"] == ("subjects",):
        return "must be a list of tables: write [[subjects]]"
    if kind in bounds:
        return bounds[kind].format(**context)
    if kind.startswith("int_"):
        return "must be a whole number"
    if kind.startswith("float_"):
        return "must be a number"
    if kind in ("string_type", "path_type"):
        return 'must be text in quotes: "..."'
    if kind == "string_pattern_mismatch":
        return f"is not what this option takes: {_help(tuple(str(part) for part in detail['loc']))}"
    if kind == "literal_error":
        choices = str(context["expected"])
        hint = nearest(str(detail["input"]), re.findall("'([^']*)'", choices))
        return f"must be {choices}{hint}"
    return detail["msg"]


def origin_of(path: Path, origins: Origins) -> str | None:
    """The origin of the option, or of the nearest table around it that has one."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            return origins[path[:end]]
    return None


def dotted(path: Path) -> str:
    """('sample', 'prompts', '0') as 'sample.prompts[0]'."""
    text = ""
    for part in path:
        text += f"[{part}]" if part.isdigit() else f".{part}" if text else part
    return text


def show(value: Any) -> str:
    """A value as TOML would write it, cut when it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _help(path: Path) -> str:
    tables: dict[str, type[Section]] = {**sections(), "subjects": AnotherSubject}
    section = Recipe if len(path) == 1 else tables.get(path[0])
    field = section.model_fields.get(path[-1]) if section else None
    return field.description if field and field.description else "it has no default"
