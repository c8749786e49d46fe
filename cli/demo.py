"""`twostage demo`: the whole method in minutes, without a download or a GPU."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the run and the picture; runs/demo, or the next free number, when not given.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws another subject.", min=0, max=2**32 - 1)] = 0,
    subject_class: Annotated[str, typer.Option("--subject-class", "--class", help="What the subject is.")] = "backpack",
) -> None:
    """Learn a drawn subject; no GPU, no download."""
    from twostage import demo as verbs  # imports torch

    picture = verbs.demo(output or _free_folder(Path("runs/demo")), seed=seed, class_name=subject_class)
    typer.echo(f"\nLook at {picture}: the photos, the untouched model, the model that learned, and the real subject.")


def _free_folder(first: Path) -> Path:
    """runs/demo, runs/demo-2, ...: a second demo must not stumble over the first."""
    names = (first if number == 1 else first.with_name(f"{first.name}-{number}") for number in count(1))
    return next(folder for folder in names if not folder.exists())
