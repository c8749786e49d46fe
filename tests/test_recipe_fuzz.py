"""Whatever a recipe holds: a valid one comes back as it was, any other is refused in a line per mistake."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from twostage.errors import UserError
from twostage.recipe import Recipe, Section
from twostage.recipe_errors import section_of, sections
from twostage.recipe_file import differences, dump_recipe, load_recipe

# The same examples in every run; one that once failed stays as an @example.
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
STAGES = {"stage1": {"steps": 3, "learning_rate": 1e-3}, "stage2": {"steps": 4, "learning_rate": 1e-5}}
# Texts of a form that chance would not find.
FORMED = {
    "encoders": st.from_regex(r"(dino|clip)=[a-z/]+", fullmatch=True),
    "lr_step_rules": st.from_regex(r"(0\.[1-9]:[1-9]0,)+0\.1", fullmatch=True),
}
# Options of other kinds than any field has, beside those that it may have.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.text(max_size=5), st.booleans()), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.just(date(1979, 5, 27)),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "fuzzed.toml"


def _values(name: str, kind: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """What a field of that type and with those bounds may hold."""
    if name in FORMED and kind is str:
        return FORMED[name]
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return _values(name, inner, more)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        least = next((bound.min_length for bound in bounds if isinstance(bound, MinLen)), 0)
        return st.lists(_values(name, get_args(kind)[0], []), min_size=least, max_size=3).map(tuple)
    if isinstance(kind, UnionType):
        return st.one_of([st.none() if one is type(None) else _values(name, one, bounds) for one in get_args(kind)])
    if isinstance(kind, type) and issubclass(kind, Section):
        return _tables(kind).map(lambda table: kind.model_construct(**table))
    if kind is bool:
        return st.booleans()
    if kind in (int, float):
        return _numbers(kind, bounds)
    if kind is Path:
        return st.text(min_size=1, max_size=8).map(Path)
    assert kind is str, kind
    pattern = next((found for bound in bounds if (found := getattr(bound, "pattern", None))), None)
    if pattern:
        return st.from_regex(pattern, fullmatch=True)
    return st.text(min_size=1 if bounds else 0, max_size=12)


def _numbers(kind: type, bounds: list[Any]) -> st.SearchStrategy[Any]:
    least = next((bound.ge if isinstance(bound, Ge) else bound.gt for bound in bounds if isinstance(bound, Ge | Gt)), 0)
    most = next(
        (bound.le if isinstance(bound, Le) else bound.lt for bound in bounds if isinstance(bound, Le | Lt)), None
    )
    above, below = (any(isinstance(bound, kind) for bound in bounds) for kind in (Gt, Lt))
    if kind is float:
        return st.floats(
            least,
            most,
            exclude_min=above,
            exclude_max=below and most is not None,
            allow_nan=False,
            allow_infinity=False,
        )
    step = next((bound.multiple_of for bound in bounds if isinstance(bound, MultipleOf)), 1)
    top = 2**70 if most is None else most - below
    return st.integers(math.ceil((least + above) / step), top // step).map(lambda number: number * step)


def _field(name: str, field: FieldInfo) -> st.SearchStrategy[Any]:
    return _values(name, field.annotation, field.metadata)


@st.composite
def _tables(draw: st.DrawFn, section: type[Section]) -> dict[str, Any]:
    """A table: what has to be there, and some of the rest."""
    names = list(section.model_fields)
    needed = [name for name in names if section.model_fields[name].is_required()]
    chosen = draw(st.sets(st.sampled_from(names), max_size=3)) | set(needed)
    return {name: draw(_field(name, section.model_fields[name])) for name in names if name in chosen}


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Valid ones: options of one table do not always go with those of another."""
    tables: dict[str, Any] = {name: draw(_tables(sections()[name])) for name in STAGES if draw(st.booleans())}
    assume(tables)
    for name in draw(st.sets(st.sampled_from(sorted(set(Recipe.model_fields) - set(STAGES))), max_size=5)):
        section = section_of(Recipe.model_fields[name].annotation)
        tables[name] = draw(_tables(section) if section else _field(name, Recipe.model_fields[name]))
    try:
        return Recipe.model_validate({name: _plain(value) for name, value in tables.items()})
    except ValidationError:
        assume(False)
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    """Any value as TOML, whether or not an option may have it; None is left out by who calls this."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return value.isoformat() if isinstance(value, date) else repr(value)


def _written(tables: dict[str, dict[str, Any]]) -> str:
    top = [f"{_toml(name)} = {_toml(value)}" for name, value in tables.get("", {}).items()]
    for title, table in tables.items():
        if title:
            top += [f"[{title}]", *(f"{_toml(name)} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(top) + "\n"


def _outcome(file: Path, content: str | bytes, **flags: Any) -> Recipe | list[str]:
    """The recipe, or the lines that refuse it; anything else that is raised fails the test."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        return load_recipe(str(file), **flags)
    except UserError as error:
        lines = str(error).splitlines()
    assert lines and all(line.strip() for line in lines), lines
    return lines


@FUZZ
@given(recipe=recipes())
def test_any_valid_recipe_comes_back_as_it_was(file: Path, recipe: Recipe) -> None:
    text = dump_recipe(recipe)
    found = _outcome(file, text)
    assert found == recipe, found
    assert isinstance(found, Recipe) and dump_recipe(found) == text
    assert differences(found, recipe) == []


@FUZZ
@given(one=recipes(), other=recipes())
def test_recipes_differ_where_they_say_so(one: Recipe, other: Recipe) -> None:
    assert bool(differences(one, other)) == (one != other)


@FUZZ
@given(data=st.data(), value=ODD)
def test_any_value_of_an_option_is_taken_or_refused_in_one_line(file: Path, data: st.DataObject, value: Any) -> None:
    title = data.draw(st.sampled_from(["", *sections()]))
    section = sections()[title] if title else Recipe
    names = [name for name, field in section.model_fields.items() if section_of(field.annotation) is None]
    name = data.draw(st.sampled_from(names))
    assume(value is not None)
    tables: dict[str, dict[str, Any]] = {"": {}, **{stage: dict(options) for stage, options in STAGES.items()}}
    tables.setdefault(title, {})[name] = value
    found = _outcome(file, _written(tables))
    mistakes = len(value) if isinstance(value, list) else 1
    assert isinstance(found, Recipe) or len(found) <= max(mistakes, 1), found
    flags = {f"{title}.{name}" if title else name: value}
    by_flag = _outcome(file, _written({"": {}, **STAGES}), overrides=flags)
    assert isinstance(by_flag, Recipe) or len(by_flag) <= max(mistakes, 1), by_flag


@FUZZ
@given(title=st.sampled_from(["", "stage1", "data", "memory"]), name=st.text(max_size=12), value=ODD)
@example(title="", name="\r0", value=1)  # Was told in two lines.
def test_any_name_that_is_no_options_is_refused_in_one_line(file: Path, title: str, name: str, value: Any) -> None:
    section = sections()[title] if title else Recipe
    assume(name not in section.model_fields and value is not None and not (not title and name == "on"))
    tables: dict[str, dict[str, Any]] = {"": {}, **{stage: dict(options) for stage, options in STAGES.items()}}
    tables.setdefault(title, {})[name] = value
    found = _outcome(file, _written(tables))
    assert isinstance(found, list) and len(found) == 1, found


@FUZZ
@given(bases=st.dictionaries(st.text(max_size=6), ODD.filter(lambda value: value is not None), max_size=2))
def test_any_table_for_a_base_is_taken_or_refused(file: Path, bases: dict[str, Any]) -> None:
    tables = {"": {"on": bases}, **{stage: dict(options) for stage, options in STAGES.items()}}
    _outcome(file, _written(tables))


@FUZZ
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60)))
@example(content="a = " + "[" * 20_000)  # Deeper than the parser's stack.
@example(content="[stage1]\nsteps = " + "9" * 5000 + "\n")  # More digits than Python turns into a number.
@example(content="[stage1]\nsteps = 0x" + "f" * 5000 + "\n")  # A number with more than it writes.
@example(content="[stage1]\n" + ".".join("a" * 2_000) + " = 1\n")
@example(content=b"\xff\xfe")
@example(content=b"\x00")
def test_any_text_is_a_recipe_or_refused(file: Path, content: str | bytes) -> None:
    _outcome(file, content)
