"""`twostage push`: a finished run on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from twostage.errors import UserError
from twostage.weights import refuse_archive


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `twostage train` made.")],
    repo: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to: user/name. Made where it is missing.")],
    public: Annotated[
        bool,
        typer.Option("--public", help="Let everybody see it; private when not given. What is there already stays so."),
    ] = False,
) -> None:
    """Put a finished run on the Hugging Face hub, with its model card.

    What goes there: the token, the tuned weights or adapter, recipe, last sample pictures, and the card. What never
    does: the photos, their names and captions, checkpoints, optimizer state, paths on this machine.

    Log in first, with `hf auth login` or HF_TOKEN. Example: twostage push runs/two-stage-photos me/my-backpack
    """
    refuse_archive(run, "the run folder in it")
    if not os.path.isdir(run):  # False, where run.is_dir() is a PermissionError
        raise UserError(f"{run} is no run folder: `twostage train` makes one")

    from twostage import pushing  # imports torch

    typer.echo(pushing.push(run, repo, public=public))
