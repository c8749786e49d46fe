"""`twostage photos`: look at photos before they cost a training."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from twostage.photo_doctor import Checkup

app = typer.Typer(help="Look at photos before they cost a training.")


class Fit(StrEnum):
    """As data.fit of a recipe."""

    crop = "crop"
    pad = "pad"
    bucket = "bucket"


@app.callback()
def photos() -> None:
    """Look at photos before they cost a training."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder with the photos of the subject.")],
    class_noun: Annotated[
        str, typer.Option("--class", "--class-noun", help="What the subject is, for the command that is proposed.")
    ] = "",
    base: Annotated[str, typer.Option(help="'pocket' (bundled), a diffusers folder, or a hub id.")] = "pocket",
    resolution: Annotated[
        int | None,
        typer.Option(
            help="Side of the square training picture, in pixels; the base's own when not given.", min=16, max=4096
        ),
    ] = None,
    fit: Annotated[Fit, typer.Option(help="How photos become training pictures, as data.fit.")] = Fit.crop,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the contact sheet; checks/<photos> when not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check photos as training will see them, draw that, and propose one to hold out.

    Findings are advice: they leave the exit code at 0.
    """
    from twostage import photo_doctor  # imports torch

    output = output or Path("checks") / (folder.resolve().name or "photos")
    found = photo_doctor.check_photos(folder, output, base=base, resolution=resolution, fit=fit.value)
    command = _command(found, class_noun, base)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"command": command}, indent=2, default=str))
        return
    for finding in found.findings:
        about = f"{', '.join(finding.photos)}: " if finding.photos else ""
        _echo(f"{finding.level}: {about}{finding.says}\n    {finding.advice}")
    number = len(found.photos)
    usable = f"{number} photo{'' if number == 1 else 's'} to train on at {found.resolution} pixels"
    _echo(f"{usable}; nothing to remark on" if not found.findings else usable)
    _echo(f"see {found.sheet}")
    if found.held_out:
        _echo(f"hold this one out, the most typical, to measure against it: --held-out {_quoted(found.held_out)}")
    if any(finding.level == "error" for finding in found.findings):
        _echo("first put right what is called an error: training refuses the folder until then")
    _echo(f"then: {command}")


def _command(found: Checkup, class_noun: str, base: str) -> str:
    noun = " ".join(class_noun.split())
    words = ["twostage train two-stage", _quoted(found.folder)]
    words.append(f"--class {_quoted(noun)}" if noun else "--class ...")
    words += [f"--base {_quoted(base)}"] if base != "pocket" else []
    words += [f"--held-out {_quoted(found.held_out)}"] if found.held_out else []
    return " ".join(words)


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def _echo(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding))
