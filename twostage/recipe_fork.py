"""The recipe of a run that takes its token from another: stage 1 is learned once, and many variants fork from it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from twostage.errors import UserError
from twostage.recipe import Data, Recipe, Section, Token
from twostage.recipe_file import load_recipe
from twostage.weights import refuse_archive

# What a token was learned as. A token is used so too, or it is another one.
_TOKEN = ("placeholder", "num_vectors", "role")
_DATA = ("class_noun", "learnable")


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run that a token is to be taken from.

    Raises:
        UserError: there is no run, or it learns no token.
    """
    refuse_archive(run, "the run folder in it")
    if not (run / "recipe.toml").is_file():
        raise UserError(f"--from {run}: there is no run (no recipe.toml); give a run folder that learned a token")
    recipe = load_recipe(str(run / "recipe.toml"))
    if recipe.stage1 is None:
        raise UserError(f"--from {run}: its recipe {recipe.name!r} has no [stage1], so it learned no token to take")
    return recipe


def fork_recipe(recipe: Recipe, parent: Recipe, run: Path, given: Collection[str] = ()) -> Recipe:
    """A recipe with the stage 1 of another, whose token it takes.

    What says how the token was learned and what it stands for is taken over: [stage1], [token], class noun. So a run
    of both stages with the new recipe would do what the two runs have done. An option of those that is not at its
    default has to agree. Photos, and those held out, are the parent's where the recipe names none.

    Args:
        recipe: of the new run.
        parent: from `read_recipe`.
        run: its folder, for messages.
        given: dotted options that the user named; these have to agree, default or not.

    Raises:
        UserError: the recipe lacks one of the stages, or they disagree about the token.
    """
    if recipe.stage1 is None:
        raise UserError(
            f"--from takes the token that {run} learned in stage 1, and recipe {recipe.name!r} has no [stage1]; to go "
            f"on with all that {run} learned, give --base the folder that `twostage export {run} --to diffusers` makes"
        )
    if recipe.stage2 is None:
        raise UserError(
            f"--from takes stage 1 from {run}, and recipe {recipe.name!r} has nothing but that: nothing would be "
            "trained; choose a recipe with a [stage2]"
        )
    if idle := [name for name in given if name.startswith("stage1.")]:
        raise UserError(f"--{idle[0].replace('_', '-')} would do nothing: stage 1 is taken from {run}")
    wrong = [
        *_disagreements("token", _TOKEN, recipe.token, parent.token, given),
        *_disagreements("data", _DATA, recipe.data, parent.data, given),
        *_other_subjects(recipe, parent),
    ]
    if wrong:
        raise UserError(f"--from {run} learned another token: {', '.join(wrong)}; leave that out, or train both stages")
    taken = {name: getattr(parent.data, name) or getattr(recipe.data, name) for name in _DATA}
    brought = {name: getattr(recipe.data, name) or getattr(parent.data, name) for name in ("photos", "held_out")}
    data = recipe.data.model_copy(update=taken | brought)
    photos = [more.photos for more in recipe.subjects or parent.subjects]
    subjects = tuple(more.model_copy(update={"photos": own}) for more, own in zip(parent.subjects, photos, strict=True))
    update = {"stage1": parent.stage1, "token": parent.token, "data": data, "subjects": subjects}
    return recipe.model_copy(update=update)


def _other_subjects(recipe: Recipe, parent: Recipe) -> list[str]:
    """Where the recipe names further subjects, and they are not the parent's."""
    own, other = ([f"{more.placeholder} {more.class_noun}" for more in one.subjects] for one in (recipe, parent))
    return [f"subjects ({own}, there {other})"] if own and own != other else []


def _disagreements(
    table: str, names: tuple[str, ...], ours: Token | Data, theirs: Section, given: Collection[str]
) -> list[str]:
    """Options with another value than the parent's, as "token.placeholder ('<x>', there '<rare>')"."""
    found = []
    for name in names:
        own, other = getattr(ours, name), getattr(theirs, name)
        stated = own != type(ours).model_fields[name].default or f"{table}.{name}" in given
        # A noun may have been learned without saying what it is.
        if stated and own != other and not (name == "class_noun" and not other):
            found.append(f"{table}.{name} ({own!r}, there {other!r})")
    return found
