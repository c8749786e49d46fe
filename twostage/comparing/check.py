"""What can be known to fail before anything is begun, and needs pictures or models to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from twostage.class_prior import find_class_pictures
from twostage.comparing.plan import Cell
from twostage.comparing.request import Request
from twostage.errors import UserError
from twostage.evaluation.encoders import DEFAULTS, load_encoders
from twostage.evaluation.suites import load_suite
from twostage.families import load_base
from twostage.method.sampling import check_steps
from twostage.recipe import Recipe
from twostage.recipe_evaluation import Evaluation
from twostage.stages import find_subject_photos
from twostage.subject.held_out import find_held_out
from twostage.subject.photos import find_photos


def check(request: Request, cells: Sequence[Cell]) -> None:
    """Find photos, bases, class images, suites and the encoders that were asked for.

    Raises:
        UserError: with one line for each of them that cannot be used.
    """
    wrong = [str(error) for error in _mistakes(request, cells)]
    if wrong:
        raise UserError("\n".join(dict.fromkeys(line for text in wrong for line in text.splitlines())))


def photos_of(cells: Sequence[Cell]) -> dict[str, dict[str, list[str]]]:
    """sha256 of the photos of each subject by its name, those held out apart."""
    return {
        name: {
            "photos": [photo.sha256 for photo in find_photos(data.photos)] if data.photos else [],
            "held_out": [photo.sha256 for photo in find_held_out(data)],
        }
        for name, data in {cell.subject.name: cell.recipe.data for cell in cells}.items()
    }


def _mistakes(request: Request, cells: Sequence[Cell]) -> Iterator[UserError]:
    asks: dict[Any, Callable[[], object]] = {}
    for recipe in (cell.recipe for cell in cells):
        steps = request.evaluation.num_inference_steps or recipe.sample.num_inference_steps
        asks |= {
            ("photos", recipe.data.photos, recipe.data.num_photos): partial(_find_photos, recipe),
            ("base", recipe.base, steps): partial(_find_base, recipe.base, steps),
            ("class", recipe.prior.class_images, recipe.data.class_noun): partial(find_class_pictures, recipe),
        }
    for subject in request.subjects:
        asks["suite", subject.class_noun] = partial(_find_suite, request.evaluation, subject.class_noun)
        asks["guidance", subject.class_noun] = partial(request.evaluation.check_guidance, subject.class_noun)
    asks["encoders"] = lambda: _find_encoders(request.evaluation.encoders)
    for ask in asks.values():
        try:
            ask()
        except UserError as error:
            yield error


def _find_photos(recipe: Recipe) -> None:
    find_subject_photos(recipe, find_held_out(recipe.data))


def _find_base(source: str, steps: int) -> None:
    check_steps(load_base(source), steps)


def _find_suite(options: Evaluation, class_noun: str) -> None:
    if options.suite:
        load_suite(options.suite, class_noun=class_noun, first=options.num_prompts)


def _find_encoders(asked: Sequence[str]) -> None:
    """Those that were asked for: what the usual ones measure is left out where they are missing."""
    if asked:
        named = {text.partition("=")[0].strip() for text in asked}
        load_encoders([*asked, *(f"{role}=none" for role in DEFAULTS if role not in named)], pocket=False)
