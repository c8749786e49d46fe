"""`twostage bench`: published protocols, run here."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twostage.comparing.request import Bench, Machine
from twostage.errors import shown
from twostage.recipe_evaluation import Evaluation

from .flags import SectionedHelp, section_flags

if TYPE_CHECKING:
    from twostage.benching import Line, Outcome
    from twostage.report.pooling import Estimate

app = typer.Typer(no_args_is_help=True, help="Published protocols, run here, with the published figures beside.")
_HEADINGS = ("DINO", "CLIP-I", "CLIP-T")


@app.command(cls=SectionedHelp)
@section_flags("evaluation", Evaluation, "evaluation")
@section_flags("machine", Machine)
@section_flags("asked", Bench)
def dreambooth(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the runs; the same command goes on with it."),
    ] = Path("benches/dreambooth"),
    *,
    asked: Bench,
    machine: Machine,
    evaluation: Evaluation,
) -> None:
    """The DreamBooth paper's protocol: its subjects, its prompts, and its Table 1 beside the figures measured here.

    Example: twostage bench dreambooth --photos dreambooth/dataset --base stable-diffusion-v1-5/stable-diffusion-v1-5
    """
    from twostage import benching
    from twostage.writing import whole_file

    if "images_per_prompt" not in evaluation.model_fields_set:
        evaluation = evaluation.model_copy(update={"images_per_prompt": 4})
    outcome = benching.bench_dreambooth(
        asked, evaluation, output, machine=machine, command=shlex.join(["twostage", *sys.argv[1:]])
    )
    if outcome.table:
        table = markdown(outcome)
        with whole_file(output / "table1.md") as temporary:
            temporary.write_text(table, encoding="utf-8")
        typer.echo(table)
        typer.echo(f"the report: {outcome.comparison.report}; the table: {output / 'table1.md'}")
    for name, reason in outcome.comparison.failed.items():
        typer.echo(shown(f"error: {name}: {reason}"), err=True)
    if outcome.comparison.failed:
        raise typer.Exit(1)


def markdown(outcome: Outcome) -> str:
    """Table 1 with our rows and the paper's, and in what they differ."""
    lines = [f"| | {' | '.join(_HEADINGS)} | measured |", f"|---|{'---|' * (len(_HEADINGS) + 1)}"]
    lines += [f"| {line.name} | {' | '.join(map(_shown, line.figures))} | {_source(line)} |" for line in outcome.table]
    return "\n".join([*lines, "", *(f"- {note}" for note in outcome.notes)]) + "\n"


def _source(line: Line) -> str:
    runs = next((figure.runs for figure in line.figures if figure), 0)
    return f"here, {runs} subjects and seeds" if line.source == "here" else "in the paper (arXiv 2208.12242, Table 1)"


def _shown(figure: Estimate | None) -> str:
    if figure is None:
        return "n/a"
    interval = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.3f}{interval}"
