"""The recipe for what enlarges a base's pictures: the second of two models that make pictures together."""

from __future__ import annotations

from pathlib import Path

from twostage.errors import UserError
from twostage.recipe import Recipe


def super_resolution_stage(recipe: Recipe, first: Path | None = None) -> Recipe:
    """A recipe that trains what enlarges the pictures of another's base.

    Args:
        recipe: names it in `super_resolution`.
        first: a run of that base, which then draws the small pictures; the base itself when not given, unless the
            recipe names something else.

    Raises:
        UserError: the recipe does not name it.
    """
    if not recipe.super_resolution:
        raise UserError(
            "--stage super-resolution trains what enlarges the base's pictures, and there is no word of it: give "
            "--super-resolution, a diffusers folder or hub id such as DeepFloyd/IF-II-L-v1.0"
        )
    small = str(first) if first else recipe.low_resolution or recipe.base
    update = {"base": recipe.super_resolution, "super_resolution": "", "low_resolution": small}
    return recipe.model_copy(update=update)
