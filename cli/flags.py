"""Command-line flags, derived from the recipe's fields.

Nothing is declared here: each field of `Recipe` becomes `--section.field` plus the short names it lists. All default
to None, so that only what was given overrides the recipe file.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from twostage.errors import UserError
from twostage.recipe import Recipe, Section, Stage, short_names, unit
from twostage.recipe_errors import mistakes, sections

EVERY_STAGE = "Every stage that the recipe has (--stage1.NAME or --stage2.NAME for one alone)"


def recipe_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a Typer command a flag for every option of the recipe.

    The command takes a parameter `overrides: dict[str, Any]`, which Typer never sees: it gets the flags that were
    given, keyed the way `load_recipe` wants them ("stage2.learning_rate"). Whether a value is one that the option
    takes is left to the recipe, so that all mistakes, in flags and file, are reported together.
    """
    return _with_flags(command, "overrides", list(_parameters()), lambda given: given)


def section_flags(
    name: str, section: type[Section], prefix: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a Typer command a flag for every option of a section that is no part of the recipe.

    Args:
        name: of the command's parameter that takes the section, made of the flags that were given.
        section: its class.
        prefix: of the flags, as in --evaluation.seed; without one they are the options' own names, --seed.
    """
    panel = _first_line(section)
    dot = f"{prefix}." if prefix else ""
    flags = [
        (field_name, field, _parameter(f"{dot}{field_name}", field, short_names(field), panel))
        for field_name, field in section.model_fields.items()
    ]

    def build(given: dict[str, Any]) -> Section:
        try:
            return section.model_validate(given)
        except ValidationError as error:
            origins: dict[tuple[str, ...], str] = {(key,): f"--{dot}{key}".replace("_", "-") for key in given}
            lines = [line for _, line in mistakes(error, origins, "")]
            raise UserError("\n".join(dict.fromkeys(lines))) from error

    return lambda command: _with_flags(command, name, flags, build)


def _with_flags(
    command: Callable[..., None],
    name: str,
    flags: list[tuple[str, FieldInfo, inspect.Parameter]],
    build: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """The command with the flags in place of its parameter `name`, which gets what `build` makes of those given."""
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def with_flags(**given: Any) -> None:
        values = {}
        for key, field, parameter in flags:
            value = given.pop(parameter.name)
            if value is not None and value != []:
                values[key] = _parse(value, _plain_type(field), _item_type(field))
        command(**given, **{name: build(values)})

    parameters = [p for p in own.parameters.values() if p.name != name]
    parameters += [parameter for _, _, parameter in flags]
    with_flags.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_flags


class SectionedHelp(TyperCommand):
    """`--help` with a heading per section. Rich's panels cut long flag names off at 80 columns; plain text does not."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, in the order and under the headings they were declared with."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


def _parameters() -> Iterator[tuple[str, FieldInfo, inspect.Parameter]]:
    """Key for `load_recipe`, field, and Typer parameter of every flag."""
    tables = sections()
    for name, field in Recipe.model_fields.items():
        if name not in tables:
            yield name, field, _parameter(name, field, short_names(field), "Run")
    for title, section in tables.items():
        if title == "stage1":  # what the stages share comes before what is one's own
            for name, field in Stage.model_fields.items():
                yield f"stage.{name}", field, _parameter(f"stage.{name}", field, short_names(field), EVERY_STAGE)
        for name, field in section.model_fields.items():
            shared = issubclass(section, Stage) and name in Stage.model_fields
            names = [] if shared else short_names(field)
            yield f"{title}.{name}", field, _parameter(f"{title}.{name}", field, names, _first_line(section), shared)


def _parameter(key: str, field: FieldInfo, names: list[str], panel: str, hidden: bool = False) -> inspect.Parameter:
    kind = _plain_type(field)
    spelled = [name.replace("_", "-") for name in (key, *names)]
    # Without the second name there would be no way to turn off what a recipe file turns on.
    declared = [f"--{name}/--no-{name}" if kind is bool else f"--{name}" for name in spelled]
    option = typer.Option(
        None,
        *declared,
        help=(field.description or "") + _facts(field),
        metavar=None if kind is bool else _metavar(_item_type(field) or kind),
        rich_help_panel=panel,
        show_default=False,
        hidden=hidden,
    )
    annotation = bool | None if kind is bool else list[str] | None if kind is tuple else str | None
    return inspect.Parameter(
        key.replace(".", "__"), inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation
    )


def _plain_type(field: FieldInfo) -> Any:
    """int of `int | None`, tuple of `tuple[str, ...]`; a Literal as it is."""
    kind: Any = field.annotation
    if get_origin(kind) in (Union, UnionType):  # The former of `Literal[...] | None` until Python 3.14.
        kind = next(choice for choice in get_args(kind) if choice is not type(None))
    return tuple if get_origin(kind) is tuple else kind


def _item_type(field: FieldInfo) -> Any:
    """int of `tuple[PositiveInt, ...]`; None where the field holds no list."""
    if get_origin(field.annotation) is not tuple:
        return None
    item = get_args(field.annotation)[0]
    return get_args(item)[0] if get_origin(item) is Annotated else item


def _parse(value: Any, kind: Any, item: Any = None) -> Any:
    """The number that the text stands for; what is none stays text, and the recipe will say so."""
    if kind is tuple:
        return [_parse(one, item) for one in value]
    if kind not in (int, float):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Section):
        return ":".join(["PHOTOS", "CLASS", "TOKEN[:INITIALIZER]"])
    return {int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(kind, "PATH")


def _facts(field: FieldInfo) -> str:
    facts = [unit(field)] if unit(field) else []
    if not field.is_required() and field.default not in (None, "") and not isinstance(field.default, bool | tuple):
        facts.append(f"default {field.default}")
    return f" ({'; '.join(facts)})" if facts else ""


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").splitlines()[0].rstrip(".")
