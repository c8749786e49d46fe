"""`twostage demo`: the whole method in minutes, without a download or a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the run and the picture.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Another seed draws another subject.", min=0, max=2**32 - 1)] = 0,
    subject_class: Annotated[str, typer.Option(help="What the subject is.")] = "backpack",
) -> None:
    """Learn a drawn subject; no GPU, no download."""
    from twostage import demo as verbs  # imports torch

    picture = verbs.demo(output, seed=seed, class_name=subject_class)
    typer.echo(
        f"\nLook at {picture}: the real subject, the untouched model, and the model that learned it, side by side."
    )
