"""`twostage compare`: which strategy, at what cost, and what the model forgot."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twostage import comparing
from twostage.comparing.request import Asked, Machine, Request, read_request
from twostage.errors import shown
from twostage.recipe_evaluation import Evaluation

from .flags import section_flags

if TYPE_CHECKING:
    from twostage.comparing import Comparison


@section_flags("evaluation", Evaluation, "evaluation")
@section_flags("machine", Machine)
@section_flags("asked", Asked)
def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="Recipes' names (see `twostage recipe list`), or TOML files."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the comparison, or an fsspec address such as s3://bucket/name; comparisons/<photos> when "
            "not given. The same command goes on with what is there.",
        ),
    ] = None,
    *,
    asked: Asked,
    machine: Machine,
    evaluation: Evaluation,
) -> None:
    """Train recipes on the same photos, evaluate them in the same way, and write a report.

    Example: twostage compare two-stage dreambooth textual-inversion --photos photos/ --class backpack
    """
    request = read_request(asked, recipes, evaluation)
    done = comparing.compare(
        request,
        output or _usual_output(request),
        machine=machine,
        command=shlex.join(["twostage", *sys.argv[1:]]),
    )
    _print(done)
    if done.failed:
        raise typer.Exit(1)


def _usual_output(request: Request) -> str:
    first, *others = (subject.name for subject in request.subjects)
    return str(Path("comparisons") / (f"{first}-and-{len(others)}-more" if others else first))


def _print(done: Comparison) -> None:
    if done.rows and sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table()
        table.add_column("strategy", no_wrap=True)
        for heading in (*done.rows[0].cells, "runs"):
            table.add_column(heading)
        for row in done.rows:
            table.add_row(row.strategy, *row.cells.values(), str(row.runs))
        Console().print(table)
    elif done.rows:  # For grep and awk: one line each, never wrapped.
        for cells in (("strategy", *done.rows[0].cells), *((row.strategy, *row.cells.values()) for row in done.rows)):
            typer.echo("\t".join(cells))
    if done.report:
        typer.echo(shown(f"the report: {done.report}"))
    for name, reason in done.failed.items():
        typer.echo(shown(f"error: {name}: {reason}"), err=True)
