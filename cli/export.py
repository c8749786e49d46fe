"""`twostage export`: a finished run as other programs read it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from twostage.errors import UserError, shown
from twostage.export import Naming, Options, Precision, check_options, default_output, known_formats


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder that `twostage train` made, or a delta of it.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="|".join(known_formats()), help="Format.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", "--output-dir", help="Folder to make; RUN/export/FORMAT when not given."),
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option("--dtype", help="Precision of the stored weights; float16 when not given.")
    ] = None,
    naming: Annotated[
        Naming | None,
        typer.Option(
            "--naming", help="Names in lora and embedding files; kohya's, which most programs read, when not given."
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Extract a LoRA of this rank from weights that are none.", show_default=False),
    ] = None,
) -> None:
    """Write a run as other programs read it.

    diffusers: a whole pipeline folder. a1111, comfyui: one checkpoint, the token beside it. lora: the run's own, or one
    of --rank extracted from it. embedding: the token alone. delta: what changed, for twostage itself.

    What was written is loaded again by stock diffusers, and a picture compared with the run's own.
    """
    options = Options(dtype, naming, rank)
    check_options(to, options)
    if not os.path.exists(run):  # False, where run.exists() is a PermissionError
        raise UserError(f"{run} is no run folder: `twostage train` makes one")
    folder = output or default_output(run, to)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write to {folder}: {nearest} is not yours to write; choose another --output")

    from twostage import exporting  # imports torch

    exported = exporting.export(run, to, folder, options)
    for name, size in exported.files.items():
        typer.echo(f"{exported.folder / name}  {_size(size)}")
    for line in exported.usage:
        typer.echo(shown(line))
    limit = f"limit {exported.tolerance:g}" if exported.tolerance else "an approximation, so no limit"
    typer.echo(
        f"loaded again by diffusers, it draws the run's picture but for {exported.mean:.2f} of 255 levels in the mean "
        f"({limit}), {exported.largest} at most"
    )


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
