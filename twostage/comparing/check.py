"""What can be known to fail before anything is begun, and needs pictures or models to be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twostage.comparing.plan import Cell
from twostage.comparing.request import Request
from twostage.errors import UserError
from twostage.evaluation.suites import load_suite
from twostage.families import load_base
from twostage.stages import find_class_pictures, find_subject_photos
from twostage.subject.held_out import find_held_out


def check(request: Request, cells: Sequence[Cell]) -> None:
    """Find photos, bases, class images and the suite.

    Raises:
        UserError: with one line for each of them that cannot be used.
    """
    wrong = [str(error) for error in _mistakes(request, cells)]
    if wrong:
        raise UserError("\n".join(dict.fromkeys(line for text in wrong for line in text.splitlines())))


def _mistakes(request: Request, cells: Sequence[Cell]) -> Iterator[UserError]:
    seen = set()
    for cell in cells:
        recipe = cell.recipe
        asks = {
            ("photos", recipe.data.photos, recipe.data.num_photos): lambda r=recipe: find_subject_photos(
                r, find_held_out(r.data)
            ),
            ("base", recipe.base): lambda r=recipe: load_base(r.base),
            ("class", recipe.prior.class_images, recipe.data.class_noun): lambda r=recipe: find_class_pictures(r),
        }
        for key, ask in asks.items():
            if key in seen:
                continue
            seen.add(key)
            try:
                ask()
            except UserError as error:
                yield error
    if request.evaluation.suite:
        try:
            nouns = [subject.class_noun for subject in request.subjects]
            load_suite(request.evaluation.suite, class_noun=nouns[0], first=request.evaluation.num_prompts)
        except UserError as error:
            yield error
