"""The prompts a subject is trained with: a photo's own caption, one for all, or the field's templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from twostage.errors import UserError
from twostage.recipe import Data, Token
from twostage.subject.photos import Photo

# The object templates of Textual Inversion (arXiv 2208.01618), as every implementation has them.
OBJECT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)


def subject_phrase(token: Token, class_noun: str) -> str:
    """What stands for the subject in a prompt: "<rare> backpack" (adjective) or "<rare>" (noun).

    A token of several vectors is written once, as in the prompts of stock diffusers; `Placeholder.expand` spells its
    vectors out for the tokenizer.

    Raises:
        UserError: the token is an adjective and there is no class noun for it to qualify.
    """
    noun = " ".join(class_noun.split())
    if token.role == "noun":
        return token.placeholder
    if not noun:
        raise UserError(
            "class_noun is empty, and the token is an adjective; say what the subject is, as in --class backpack"
        )
    return f"{token.placeholder} {noun}"


def choose_prompt(photo: Photo, data: Data, phrase: str, rng: np.random.Generator) -> str:
    """The prompt of one training sample.

    The photo's own caption wins over `data.caption`, which wins over a template drawn from `rng`; `{}` in it becomes
    `phrase`.

    Args:
        photo: the sample's photo.
        data: the recipe's data section.
        phrase: from `subject_phrase`.
        rng: addressed by seed, stage, step and sample; at most one draw is taken.

    Raises:
        UserError: a caption names neither `{}` nor the token, so that the token would not be trained.
    """
    prompts = _prompts(photo, data, phrase)
    return prompts[0] if len(prompts) == 1 else prompts[rng.integers(len(prompts))]


def all_prompts(photos: Sequence[Photo], data: Data, phrase: str) -> list[str]:
    """Every prompt that `choose_prompt` can return for these photos, each once, in a fixed order.

    Raises:
        UserError: as `choose_prompt`.
    """
    return list(dict.fromkeys(prompt for photo in photos for prompt in _prompts(photo, data, phrase)))


def _prompts(photo: Photo, data: Data, phrase: str) -> list[str]:
    if photo.caption is not None:
        return [_fill(photo.caption, phrase, where=f"the caption of {photo.path.name}")]
    if data.caption.strip():
        return [_fill(data.caption.strip(), phrase, where="data.caption")]
    return [_fill(template, phrase, where="a template") for template in OBJECT_TEMPLATES]


def _fill(caption: str, phrase: str, *, where: str) -> str:
    name = phrase.split(" ")[0]
    if "{}" not in caption and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", caption):
        raise UserError(
            f"{where} is {caption!r}, without {{}} or {name}: the token would learn nothing; "
            f"write {{}} where {phrase!r} belongs"
        )
    return caption.replace("{}", phrase)
