"""`twostage train`: photos in, run folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from twostage.errors import UserError
from twostage.recipe import Recipe
from twostage.recipe_cascade import super_resolution_stage
from twostage.recipe_file import load_recipe
from twostage.recipe_fork import fork_recipe, read_recipe

from .flags import recipe_flags


@recipe_flags
def train(  # noqa: PLR0913
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe's name (see `twostage recipe list`), TOML file or run folder."),
    ],
    photos: Annotated[
        str | None, typer.Argument(metavar="PHOTOS", help="Folder with the 3 to 5 photos of the subject.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            "--output-dir",
            help="Run folder; runs/<recipe>-<photos> when not given, or RECIPE where it is a run to resume.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's latest checkpoint.")] = False,
    resume_from_checkpoint: Annotated[
        str | None, typer.Option(metavar="latest", help="The same as --resume; 'latest' is the only choice.")
    ] = None,
    token_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Take the token, and what it stands for, from a run whose stage 1 is done, and begin with stage 2. "
            "Its tuned weights are not taken: for those, export it `--to diffusers` and make that the --base.",
        ),
    ] = None,
    stage: Annotated[
        Literal["base", "super-resolution"],
        typer.Option(
            help="Which model of a cascade to train: the base, or what enlarges its pictures (--super-resolution), as "
            "DeepFloyd IF's second stage. Its samples enlarge what the run of --from draws, or --low-resolution, or "
            "else the base."
        ),
    ] = "base",
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory to fit, as 8GB, or auto for what there is, of the GPU or else of the RAM: what the cheapest "
            "rung of the memory ladder changes that fits, is changed, and where memory runs out, the next one's.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_ID",
            help="At the end, put the run on the Hugging Face hub as user/name, private; see `twostage push`.",
        ),
    ] = None,
    *,
    overrides: dict[str, Any],
) -> None:
    """Teach a base model one subject.

    Example: twostage train two-stage photos/ --class backpack --base stable-diffusion-v1-5/stable-diffusion-v1-5
    """
    if resume_from_checkpoint not in (None, "latest"):
        raise UserError(
            f"--resume-from-checkpoint {resume_from_checkpoint}: only 'latest' can be resumed; "
            "to go on from a run folder, write --resume --output FOLDER"
        )
    if photos is not None:
        overrides["data.photos"] = photos
    resolved = load_recipe(recipe, overrides=overrides)
    if token_from is not None:
        resolved = _fork(recipe, resolved, token_from, overrides)
    if stage == "super-resolution":
        resolved = super_resolution_stage(resolved, token_from)
    folder = _photos(resolved)
    _check_class(resolved)
    resume = resume or resume_from_checkpoint is not None
    if output is None and resume and Path(recipe).is_dir():
        output = Path(recipe)
    output = output or Path("runs") / f"{resolved.name}-{folder.resolve().name}"

    from twostage import run  # imports torch: only now, when all that is cheap to check has been checked

    if push_to_hub:
        from twostage import pushing

        pushing.check_push(push_to_hub)
    if vram is None:
        finished = run.train(resolved, output, resume=resume, token_from=token_from)
    else:
        from twostage import fitting

        finished = fitting.train(resolved, output, vram, resume=resume, token_from=token_from)
    if push_to_hub:
        typer.echo(pushing.push(finished, push_to_hub))
    prompt = "a house in the style of {}" if resolved.data.learnable == "style" else "a photo of a {} on the beach"
    typer.echo(f'{finished} is ready; try: twostage generate {finished} "{prompt}"')


def _fork(name: str, recipe: Recipe, run: Path, overrides: dict[str, Any]) -> Recipe:
    """The recipe with the token of a run, and its base and what enlarges its pictures where neither flags nor recipe
    name one."""
    parent = read_recipe(run)
    if "base" not in overrides and recipe.base == Recipe.model_fields["base"].default != parent.base:
        larger = overrides.get("super_resolution", parent.super_resolution)
        recipe = load_recipe(name, overrides={**overrides, "base": parent.base, "super_resolution": larger})
    return fork_recipe(recipe, parent, run, overrides)


def _photos(recipe: Recipe) -> Path:
    folder = recipe.data.photos
    if folder is None:
        raise UserError("no photos: name their folder behind the recipe, as in `twostage train two-stage photos/`")
    if str(folder) == ".":  # what "$UNSET" becomes, too; a run on whatever lies around is worth a word
        raise UserError("PHOTOS is empty or '.': name the folder with the photos")
    return folder


def _check_class(recipe: Recipe) -> None:
    """Ask for the class noun before a base is loaded or downloaded: an adjective has to stand before something."""
    noun_needed = recipe.token.role == "adjective" and recipe.data.learnable == "subject"
    if noun_needed and not recipe.data.class_noun.strip():
        raise UserError(
            "what is on the photos? say it in a word or two, as in --class backpack (for prompts without it, "
            "--token.role noun)"
        )
