"""`twostage report`: what evaluated runs say, as a page to look at and to pass on."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from twostage.errors import shown


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Evaluated runs, comparisons, or folders of those.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="HTML file; .md, .json and .csv of the same name come beside it. When not given: report.html in the "
            "folder if there is one, else here.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Title; says what was compared when not given.")] = "",
) -> None:
    """Put evaluated runs side by side: a verdict, pictures, charts and tables in one HTML file that needs no network.

    `twostage evaluate RUN` makes what it reads. A run that cannot be read is named and left out; the exit code is
    then 1. Example: twostage report runs/comparison
    """
    from twostage.report import reading, writing

    if output is None:
        output = runs[0] / "report.html" if len(runs) == 1 and os.path.isdir(runs[0]) else Path("report.html")
    writing.check_output(output)
    found, skipped = reading.read_runs(runs)
    command = shlex.join(["twostage", "report", *map(str, runs)])
    judged = writing.write(found, skipped, output, title=title, command=command)
    for one in skipped:
        typer.echo(shown(f"skipped {one.folder}: {one.reason}"), err=True)
    typer.echo(shown(judged.headline))
    typer.echo(str(output))
    if skipped:
        raise typer.Exit(1)
