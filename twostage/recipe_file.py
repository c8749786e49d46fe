"""Recipes as TOML files: find, read, merge with flags, check, and write.

Precedence: flag > [on.<base>] table of the file > rest of the file > default.
"""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twostage import recipe_errors
from twostage.errors import UserError, printable
from twostage.recipe import Recipe, Section, Stage, short_names

STAGES = ("stage1", "stage2")
# Of recipe files. Raise it when a file of now would mean something else to the version before, or be refused by it with
# no hint at why; `_check_format` then says how to go on with an older one, or it is read.
FORMAT = 1

_BESIDE = Path(__file__).parent / "recipes"
# Installed, recipes/ lies inside the package; in a checkout it lies beside it.
RECIPES = _BESIDE if _BESIDE.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name_or_path: str, *, overrides: Mapping[str, Any] | None = None, base: str | None = None) -> Recipe:
    """Read a recipe and lay the flags over it.

    Args:
        name_or_path: a shipped recipe's name, or a TOML file.
        overrides: dotted option -> value from flags. "stage.<option>" means every stage that the recipe has.
        base: the base model, when it is not the recipe's; the same as overrides["base"].

    Returns:
        The recipe with every option resolved; its name is the file's where the file gives none.

    Raises:
        UserError: with one line for every mistake in file and flags.
    """
    path = find_recipe(name_or_path)
    content = _read(path)
    _check_format(path, content.pop("format", FORMAT))
    tables = content.pop("on", {})
    flags = dict(overrides or {})
    if base is not None:
        flags.setdefault("base", base)

    layers = _Layers(path)
    layers.add(content, layers.file)
    base_name = flags.get("base", content.get("base", Recipe.model_fields["base"].default))
    if not isinstance(tables, dict):
        layers.wrong.append(f"{layers.file}: on = {recipe_errors.show(tables)}: must be a table: write [on.pocket]")
        tables = {}
    for other, table in tables.items():
        if other != base_name:  # not used in this run, but a mistake in it should not wait for another base
            layers.wrong += layers.copy().add(table, f"{layers.file} [on.{other}]").check_last()
    for chosen in tables.keys() & {str(base_name)}:
        layers.add(tables[chosen], f"{layers.file} [on.{chosen}]")
    layers.add_flags(flags)
    return layers.recipe()


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe, or the user's own file.

    Raises:
        UserError: neither a shipped name nor a file.
    """
    shipped = shipped_recipes()
    if name_or_path in shipped:
        return RECIPES / f"{name_or_path}.toml"
    path = Path(name_or_path)
    try:
        is_file, is_folder, is_run = path.is_file(), path.is_dir(), (path / "recipe.toml").is_file()
    except OSError as error:  # no permission, or a name too long to be one
        raise UserError(f"cannot read the recipe {recipe_errors.show(name_or_path)}: {error.strerror}") from error
    if is_file:
        return path
    if is_run:  # the recipe that run was trained with
        return path / "recipe.toml"
    if is_folder:
        raise UserError(f"{path} is a folder; a recipe is a TOML file, or one of {', '.join(shipped)}")
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UserError(f"there is no recipe file {path}")
    hint = recipe_errors.nearest(name_or_path, shipped)
    raise UserError(
        f"there is no recipe {recipe_errors.show(name_or_path)}{hint or ';'} "
        f"there are {', '.join(shipped)}, or give a TOML file"
    )


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML with each option's help as a comment.

    What has no value stays a comment. `load_recipe` reads the text back to an equal recipe.
    """
    lines = ["# Of this file, so that later versions read it as this one does.", f"format = {FORMAT}"]
    lines += _dump_options(recipe)
    for title, section in recipe_errors.sections().items():
        table = getattr(recipe, title)
        if table is None:
            lines.append(f"\n# [{title}] is absent: this recipe has no such stage.")
            continue
        lines += [f"\n# {(section.__doc__ or '').splitlines()[0]}", f"[{title}]", *_dump_options(table)]
    return "\n".join(lines) + "\n"


def _check_format(path: Path, found: Any) -> None:
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise UserError(f"{path}: format must be a whole number from 1, not {recipe_errors.show(found)}; leave it out")
    if found > FORMAT:
        raise UserError(
            f"{path} is a recipe of a newer twostage (format {found}, and this one reads up to {FORMAT}); update "
            "twostage"
        )


def _dump_options(section: Section) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        if recipe_errors.section_of(field.annotation):
            continue
        value = getattr(section, name)
        lines += textwrap.wrap(field.description or "", 110, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"# {name} = (not set)" if value is None else f"{name} = {_toml(value)}")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Section):
        return "{" + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's, save that TOML also wants DEL escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        json.dumps(content, default=str)  # As `_validate` will. TOML limits no number's digits and no name's dots.
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise UserError(f"{path} is not a recipe: its tables or lists lie too deep in each other") from error
    except ValueError as error:  # Of TOML itself, or of a number with thousands of digits.
        raise UserError(f"{path} is not valid TOML: {error}") from error
    return content


class _Layers:
    """Values laid over each other, each remembering where it came from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.name if path.parent == RECIPES else str(path)
        self.values: dict[str, Any] = {}
        self.origins: dict[tuple[str, ...], str] = {}
        self.wrong: list[str] = []
        self.last = self.file

    def copy(self) -> _Layers:
        """As far as it has come, without the mistakes so far."""
        twin = _Layers(self.path)
        twin.values = {k: dict(v) if isinstance(v, dict) else v for k, v in self.values.items()}
        twin.origins = dict(self.origins)
        return twin

    def add(self, table: Any, origin: str) -> _Layers:
        """Lay a table of options, as TOML gives it, over what is there."""
        self.last = origin
        if not isinstance(table, dict):
            self.wrong.append(f"{origin}: must be a table of options, not {recipe_errors.show(table)}")
            return self
        for name, value in table.items():
            if origin != self.file and name in STAGES and name not in self.values:
                self.wrong.append(f"{origin}: {name}: {self._no_stage(name)}")
            elif isinstance(value, dict) and isinstance(self.values.get(name, {}), dict):
                self.values.setdefault(name, {})
                self.origins.setdefault((name,), origin)
                for option, inner in value.items():
                    self._put((name, option), inner, origin)
            else:
                self._put((name,), value, origin)
        return self

    def add_flags(self, flags: Mapping[str, Any]) -> None:
        """Lay flags over what is there: dotted option -> value."""
        given = [stage for stage in STAGES if stage in self.values]
        for name in sorted(flags, key=lambda name: not name.startswith("stage.")):  # one stage's own flag wins
            table, _, option = name.rpartition(".")
            origin = "--" + name.replace("_", "-")
            if table == "stage":
                origin = "--" + _short_name(option)
                if len(given) > 1 and option in ("learning_rate", "steps"):
                    both = " or ".join(f"--{stage}.{option.replace('_', '-')}" for stage in given)
                    self.wrong.append(
                        f"{origin}: the recipe has two stages, and they need different ones; write {both}"
                    )
                    continue
            for stage in given if table == "stage" else [table]:
                self._put_flag(stage, option, flags[name], origin)

    def _put_flag(self, table: str, option: str, value: Any, origin: str) -> None:
        if table in STAGES and table not in self.values:
            self.wrong.append(f"{origin}: {self._no_stage(table)}")
        elif not table:
            self._put((option,), value, origin)
        elif isinstance(self.values.setdefault(table, {}), dict):
            self._put((table, option), value, origin)

    def _no_stage(self, stage: str) -> str:
        return (
            f"{self.file} has no [{stage}], so there is nothing to set; copy it with `twostage recipe new` to add one"
        )

    def _put(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        if _has_surrogates(value):
            self.wrong.append(f"{origin}: {recipe_errors.dotted(path)} is not valid UTF-8 text")
            return
        self.origins[path] = origin
        table = self.values if len(path) == 1 else self.values[path[0]]
        table[path[-1]] = value

    def check_last(self) -> list[str]:
        """The mistakes that the last layer brought in."""
        try:
            self._validate()
        except ValidationError as error:
            found = recipe_errors.mistakes(error, self.origins, self.file)
            self.wrong += [line for path, line in found if recipe_errors.origin_of(path, self.origins) == self.last]
        return self.wrong

    def recipe(self) -> Recipe:
        """The finished recipe, or every mistake at once."""
        if not any(stage in self.values for stage in STAGES):
            self.wrong.append(f"{self.file}: has neither [stage1] nor [stage2], so it would train nothing")
        self.values.setdefault("name", re.sub(r"\W+", "-", self.path.stem).strip("-_") or "recipe")
        try:
            recipe = self._validate()
        except ValidationError as error:
            self.wrong += [line for _, line in recipe_errors.mistakes(error, self.origins, self.file)]
        if self.wrong:
            raise UserError("\n".join(dict.fromkeys(map(printable, self.wrong))))
        return recipe

    def _validate(self) -> Recipe:
        # Through JSON because pydantic's strict mode then takes a list for a tuple and text for a path,
        # yet still refuses "3" for 3 and 1 for true.
        return Recipe.model_validate_json(json.dumps(self.values, default=str), strict=True)


def _has_surrogates(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value)


def _short_name(option: str) -> str:
    field = Stage.model_fields.get(option)
    names = short_names(field) if field else []
    return names[0] if names else f"stage.{option.replace('_', '-')}"


def differences(stored: Recipe, given: Recipe) -> list[str]:
    """Options in which two recipes differ, as "stage2.steps (300, now 400)"."""
    old, new = flatten(stored.model_dump(mode="json")), flatten(given.model_dump(mode="json"))
    names = list(dict.fromkeys([*old, *new]))
    return [f"{name} ({old.get(name)}, now {new.get(name)})" for name in names if old.get(name) != new.get(name)]


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables in one level, by dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in table.items():
        leaves.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return leaves
