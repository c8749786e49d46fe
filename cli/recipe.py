"""`twostage recipe`: see the strategies, and start one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from twostage.errors import UserError
from twostage.recipe import Recipe, unit
from twostage.recipe_errors import sections
from twostage.recipe_file import find_recipe, load_recipe, shipped_recipes

app = typer.Typer(help="List, show and copy recipes.")

Name = Annotated[str, typer.Argument(help="A recipe's name, TOML file or run folder.")]


@app.command("list")
def list_recipes() -> None:
    """List the recipes that come with twostage."""
    recipes = [load_recipe(name) for name in shipped_recipes()]
    if not sys.stdout.isatty():  # for grep and awk: one line each, never wrapped
        for recipe in recipes:
            typer.echo(f"{recipe.name}\t{_stages(recipe)}\t{recipe.description}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "stages", "what it does")
    for recipe in recipes:
        table.add_row(recipe.name, _stages(recipe), recipe.description)
    Console().print(table)


@app.command()
def show(
    name: Name,
    base: Annotated[str | None, typer.Option(help="Show the values for this base model.")] = None,
) -> None:
    """Show every option of a recipe: value, default and help."""
    recipe = load_recipe(name, base=base)
    for option, field in Recipe.model_fields.items():
        if option not in sections():
            _print_option(option, getattr(recipe, option), field)
    for title, section in sections().items():
        table = getattr(recipe, title)
        typer.echo(f"\n[{title}]" + ("" if table else "  absent: the recipe has no such stage"))
        for option, field in section.model_fields.items() if table else ():
            _print_option(f"{title}.{option}", getattr(table, option), field)


@app.command()
def new(name: Name, file: Annotated[Path, typer.Argument(help="TOML file to write.")]) -> None:
    """Copy a recipe into a file of your own, to change it and train with it."""
    load_recipe(name)  # a copy of a broken recipe helps nobody
    text = find_recipe(name).read_text(encoding="utf-8-sig")
    target = file if file.suffix else file.with_suffix(".toml")
    try:
        with target.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UserError(f"{target} exists already; name another file") from None
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    typer.echo(f"{target} is yours to change; then: twostage train {target} PHOTOS --class NOUN")


def _stages(recipe: Recipe) -> str:
    return " + ".join(str(n) for n, stage in ((1, recipe.stage1), (2, recipe.stage2)) if stage)


def _print_option(name: str, value: Any, field: Any) -> None:
    shown = "not set" if value is None else f"{list(value)}" if isinstance(value, tuple) else f"{value!r}"
    default = None if field.is_required() else field.default
    facts = [unit(field)] if unit(field) else []
    if value != default:
        facts.append("no default" if default is None else f"default {default!r}")
    typer.echo(f"{name} = {shown}" + (f"  ({'; '.join(facts)})" if facts else ""))
    typer.echo(f"    {field.description}")
