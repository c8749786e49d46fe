"""Prior preservation in a run: what the class is held to, found, checked and made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from twostage.families import Base
from twostage.memory.streaming import streamed
from twostage.method.class_samples import ClassSamples, Making
from twostage.method.examples import Examples
from twostage.method.photo_predictions import prepare_photo_predictions
from twostage.method.prior import check_prior, class_prompt, find_class_images, prepare_prior
from twostage.recipe import Prior, Recipe
from twostage.session import Session
from twostage.subject.photos import Photo


def find_class_pictures(recipe: Recipe) -> list[Photo]:
    """The user's own class images, where the recipe has use for some, before a base is loaded or even downloaded.

    Raises:
        UserError: one cannot be read, or there is no class to be held to.
    """
    if not recipe.prior.wanted or recipe.prior.source == "photos":
        return []
    class_prompt(recipe.prior, recipe.data.class_noun)
    return find_class_images(recipe.prior)


def class_prompts(
    session: Session, base: Base, photos: list[list[Photo]], class_images: list[Photo]
) -> tuple[str, ...]:
    """What the base is asked for at each photo, where the prior asks it there; the prior is checked.

    Raises:
        UserError: a prior cannot be made; see `check_prior`.
    """
    recipe, prior = session.recipe, session.recipe.prior
    if not prior.wanted:
        return ()
    at_photos, subjects = prior.source == "photos", recipe.every_subject()
    asked = [_photo_prompt(prior, data.class_noun) for _, data in subjects]
    if not at_photos:
        asked = [class_prompt(prior, recipe.data.class_noun)]
        if recipe.subjects:
            session.display.say(f"note: of the subjects' classes, the prior keeps that of {asked[0]!r} alone")
    for token, _ in subjects:
        for prompt in dict.fromkeys(asked):
            check_prior(prior, prompt, class_images, base, token.placeholder)
    return tuple(prompt for prompt, own in zip(asked, photos, strict=True) for _ in own) if at_photos else ()


def _photo_prompt(prior: Prior, class_noun: str) -> str:
    """For the class of a photo; for nothing, where it has none: a style's, or a noun that is the whole subject."""
    if "{class}" in prior.class_prompt and not class_noun.strip():
        return ""
    return class_prompt(prior, class_noun)


def prepare_class(
    session: Session,
    base: Base,
    class_images: list[Photo],
    photos: tuple[Examples, Sequence[str]] | None = None,
) -> ClassSamples | None:
    """What stage 2 holds to. Ctrl-C ends it at once, and a cache keeps what is done.

    Args:
        session: of the run.
        base: untouched as yet.
        class_images: from `find_class_pictures`.
        photos: the subject's, and what is asked for at each; only a prior of those wants them.

    Raises:
        UserError: a picture cannot be read, or the cache not be written.
    """
    recipe = session.recipe
    if not recipe.prior.wanted:
        return None
    prompt = "" if recipe.prior.source == "photos" else class_prompt(recipe.prior, recipe.data.class_noun)
    making = Making(recipe.prior, prompt, base, recipe.data, recipe.seed, session.accelerator, session.display)
    share = recipe.memory.streamed
    with session.phase("prior"), streamed(making.denoiser, share, session.device) if share else nullcontext():
        if recipe.prior.source == "photos":
            assert photos, "runs share nothing of such a prior"
            prior = prepare_photo_predictions(making, *photos)
        else:
            prior = prepare_prior(making, class_images)
    if session.frozen_dtype != torch.float32:
        base.release(base.family.denoiser)  # Rounded, where it was asked.
    return prior
