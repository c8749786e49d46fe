"""A budget in seconds: how fast each row is here, and the steps that fit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from twostage.comparing.jobs import Job
from twostage.comparing.plan import scaled
from twostage.comparing.tasks import Probe
from twostage.errors import UserError
from twostage.recipe import Recipe
from twostage.recipe_file import STAGES


def probes(recipes: Mapping[str, Recipe]) -> list[Job]:
    """Measurements of how fast recipes are, by the names of their rows."""
    return [Job(f"{name} speed", name, Probe(name, recipe), 1.0) for name, recipe in recipes.items()]


def steps_within(recipe: Recipe, seconds: float, measured: Mapping[str, float]) -> dict[str, int]:
    """Steps of each stage that take so long, with what comes before them, in the recipe's proportion.

    Args:
        recipe: with its own steps.
        seconds: of the whole run.
        measured: seconds a step as "stage1", "stage2"; "once" and "prior": what is done but once.

    Raises:
        UserError: nothing is left for training.
    """
    own = {name: stage.steps for name in STAGES if (stage := getattr(recipe, name))}
    before = measured["once"] + measured["prior"]
    # Of one step of the whole run, each stage has its share.
    a_step = sum(measured[name] * steps for name, steps in own.items()) / sum(own.values())
    total = math.floor((seconds - before) / a_step + 1e-6)
    if total < len(own):
        sampling = f", of them {measured['prior']:.1f} s for class samples" if measured["prior"] else ""
        raise UserError(
            f"a budget of {seconds:g} s leaves no time to train {recipe.name}: {before:.1f} s go before{sampling}; "
            "give more"
        )
    return scaled(recipe, total)
