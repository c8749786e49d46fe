"""`twostage evaluate`: what a result is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from twostage.errors import UserError, shown
from twostage.recipe_evaluation import Evaluation, Foreign

from .flags import section_flags


@section_flags("foreign", Foreign)
@section_flags("options", Evaluation)
def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run folder that `twostage train` made, or a delta of it.")
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Photo of the subject, or folder of them, that was not trained on; may be given several times. The "
            "recipe's own when not given.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for evaluation.json and the pictures; RUN when not given."),
    ] = None,
    *,
    options: Evaluation,
    foreign: Foreign,
) -> None:
    """Measure identity, prompt fidelity, diversity, and what the model forgot.

    Example: twostage evaluate runs/two-stage-photos --held-out more-photos/
    """
    given = foreign.model_dump(exclude_unset=True)
    if (run is None) == (foreign.pipeline is None):
        raise UserError("give a run folder, or --pipeline FOLDER with --token, and not both")
    if run is not None and given:
        raise UserError(f"--{next(iter(given)).replace('_', '-')} goes with --pipeline; a run knows that itself")
    if foreign.pipeline is not None and output is None:
        raise UserError("--pipeline folders are never written to: say where the evaluation goes, with --output FOLDER")
    if foreign.pipeline is not None and output is not None and output.resolve() == Path(foreign.pipeline).resolve():
        raise UserError(f"--output {output} is the pipeline's folder, which is never written to: name another one")

    from twostage import evaluating  # imports torch

    if run is not None:
        record = evaluating.evaluate(run, options, held_out=held_out or (), output=output)
    else:
        assert output is not None
        result = evaluating.open_pipeline(foreign, held_out=held_out or ())
        record = evaluating.evaluate_result(result, output, options)
    _print(record)
    typer.echo(f"{(output or run or Path()) / evaluating.FILE} holds every figure and choice")


def _print(record: dict[str, Any]) -> None:
    """The figures as a table, beside those of the untouched base and of real photos."""
    table = Table("figure", "better", "result", "95 %", "base", "real photos")
    for name, figure in record["figures"].items():
        low_high = figure["interval"]
        others = [record.get(row, {}).get(name) for row in ("base", "real")]
        table.add_row(
            figure["title"],
            figure["better"],
            f"{figure['value']:.3f}",
            f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "",
            *(f"{other['value']:.3f}" if other else "" for other in others),
        )
    console = Console()
    console.print(table)
    for name, reason in record["left_out"].items():
        console.print(shown(f"left out {name}: {reason}"), markup=False, highlight=False, soft_wrap=True)
