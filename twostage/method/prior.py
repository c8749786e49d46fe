"""Prior preservation: samples of the class, paired with those of the subject (arXiv 2208.12242, section 3.2)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from twostage.errors import UserError
from twostage.families import Base
from twostage.method.class_images import prepare_images
from twostage.method.class_samples import ClassSamples, Making
from twostage.method.examples import Batch, Source
from twostage.method.predictions import prepare_predictions
from twostage.method.sampling import check_steps
from twostage.recipe import Prior
from twostage.subject.photos import Photo, find_photos
from twostage.subject.tokens import is_in


@dataclass(frozen=True)
class Preserving:
    """A source of batches in which each sample has a prior one."""

    source: Source
    prior: ClassSamples

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """Rows of one optimizer step; the subject's are those of `source`, whatever the prior."""
        batch = self.source.batch(stage, step, rows, rows_per_step)
        return replace(batch, prior=self.prior.batch(stage, step, rows, rows_per_step))


def class_prompt(options: Prior, class_noun: str) -> str:
    """What prior samples are prompted with.

    Raises:
        UserError: it asks for a class noun, and there is none.
    """
    noun = " ".join(class_noun.split())
    if "{class}" in options.class_prompt and not noun:
        raise UserError(
            f"prior preservation needs to know the class: prior.class_prompt is {options.class_prompt!r}, and "
            "class_noun is empty; say what the subject is, as in --class backpack"
        )
    return options.class_prompt.replace("{class}", noun)


def find_class_images(options: Prior) -> list[Photo]:
    """The user's own class images, no more than asked for; none where there is no such folder, or nothing in it.

    Raises:
        UserError: as `find_photos`.
    """
    folder = options.class_images
    if folder is None or options.source != "images":
        return []
    try:
        empty = not os.listdir(folder)
    except OSError:
        empty = False  # And `find_photos` says what is wrong.
    return [] if empty else find_photos(folder)[: options.num_class_images]


def check_prior(options: Prior, prompt: str, own: list[Photo], base: Base, token: str) -> None:
    """Make sure that a prior can be made, before anything large is loaded.

    Args:
        options: the recipe's section.
        prompt: from `class_prompt`.
        own: from `find_class_images`.
        base: the class samples are made by.
        token: the subject's name in prompts.

    Raises:
        UserError: the base cannot draw or walk in so many steps, or from nothing; the class prompt has the subject's
            token in it.
    """
    steps, levels = options.num_inference_steps, base.noise_scheduler.config.num_train_timesteps
    if options.source == "predictions" and base.family.enlarges:
        raise UserError(
            f"prior.source = 'predictions' goes from noise to pictures of the class, and {base.family.title} enlarges "
            "pictures that are there; choose photos or images"
        )
    if options.source == "predictions" and steps > levels:
        raise UserError(f"prior.num_inference_steps {steps}: the base has {levels} noise levels; choose fewer")
    if options.source == "images" and len(own) < options.num_class_images:
        check_steps(base, steps)
    for text in dict.fromkeys([prompt, *(picture.caption or prompt for picture in own)]):
        if is_in(base.tokenizer, token, text):
            raise UserError(
                f"the prompt of the class, {text!r}, has the token {token} in it, so the prior would hold the subject "
                "to the class; choose another token, such as sks, or prior.class_prompt"
            )


def prepare_prior(making: Making, own: list[Photo]) -> ClassSamples:
    """What the class is held to elsewhere than at the photos; made where neither the user nor the cache has it.

    Args:
        making: what it depends on.
        own: from `find_class_images`.

    Raises:
        UserError: a picture cannot be read, or the cache not be written.
    """
    if making.options.source == "images":
        return prepare_images(making, own)
    return prepare_predictions(making)
