"""`twostage generate`: pictures of the subject from a run folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from twostage.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def generate(  # noqa: PLR0913
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder that `twostage train` made, or a delta of it.")
    ],
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="What to draw, {} standing for token and class: 'a photo of a {} on the beach'."
        ),
    ],
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="The first picture's; the next ones count up.", min=0, max=2**32 - 1)] = 0,
    steps: Annotated[
        int, typer.Option("--steps", "--num-inference-steps", help="Denoising steps.", min=1, max=1000)
    ] = 25,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            "--guidance-scale",
            help="Weight of the prompt; 1 is off; as the recipe says when not given.",
            min=0,
            max=100,
        ),
    ] = None,
    class_guidance: Annotated[
        float | None,
        typer.Option(
            help="Share of the guidance that goes towards the class alone, without the token: edits are followed "
            "better, in half as much time again; as the recipe says when not given.",
            min=0,
            max=1,
        ),
    ] = None,
    away_from: Annotated[
        Literal["own", "base"] | None,
        typer.Option(
            help="What the guidance steers away from: what the trained U-Net draws of nothing, or what the untouched "
            "one does, which shows the subject more clearly and takes a second U-Net; as the recipe says if not given."
        ),
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            help="How far the base's weights go to the trained ones: 0 not at all, 1 all the way.", min=0, max=2
        ),
    ] = 1.0,
    super_resolution: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="What enlarges the pictures, where the base draws small ones, as DeepFloyd IF's first stage: a run, a "
            "diffusers folder or a hub id; as the recipe says when not given.",
        ),
    ] = None,
    low_resolution: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="What draws small pictures, where the base enlarges them, as the second stage does."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", "--output-dir", help="Folder for the pictures; RUN/generated when not given."),
    ] = None,
) -> None:
    """Draw the subject.

    Pictures are numbered on from what the folder holds: none is overwritten.
    """
    if not os.path.exists(run):  # False, where run.exists() is a PermissionError
        raise UserError(f"{run} is no run folder: `twostage train` makes one")
    if not prompt.strip():
        raise UserError("PROMPT is empty: say what to draw, as in 'a photo of a {} on the beach'")
    if any("\ud800" <= character <= "\udfff" for character in prompt):  # what bytes that are no text become
        raise UserError("PROMPT is not valid UTF-8 text")
    folder = output or (run.parent if os.path.isfile(run) else run) / "generated"
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder} is a file; --output wants a folder")
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write pictures to {folder}: {nearest} is not yours to write; choose another --output")

    from twostage import run as verbs  # imports torch

    pictures = verbs.generate(
        run,
        prompt,
        count=count,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        class_guidance=class_guidance,
        away_from=away_from,
        strength=strength,
        super_resolution=super_resolution,
        low_resolution=low_resolution,
    )
    for path in _save(pictures, folder, seed, prompt):
        typer.echo(path)


def _save(pictures: list[Image], folder: Path, seed: int, prompt: str) -> list[Path]:
    """Write the pictures as PNGs that say how they were made."""
    from PIL.PngImagePlugin import PngInfo

    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-")
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(match[1]) for path in folder.iterdir() if (match := re.match(r"(\d+)-.*\.png$", path.name))]
        number = max(taken, default=0)
        for offset, picture in enumerate(pictures):
            number += 1
            info = PngInfo()
            for name, fact in {"prompt": prompt, **picture.info, "seed": seed + offset}.items():
                info.add_itxt(str(name), str(fact))
            paths.append(folder / f"{number:04d}-{words}.png")
            picture.save(paths[-1], pnginfo=info)
    except OSError as error:
        raise UserError(f"cannot write pictures to {folder}: {error.strerror or error}") from error
    return paths
