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


# The same kind of sentence for a style, naming nothing that would have to be on the picture.
STYLE_TEMPLATES: tuple[str, ...] = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "an image in the style of {}",
    "a drawing in the style of {}",
    "a rendering in the style of {}",
    "an illustration in the style of {}",
    "a work of art in the style of {}",
    "a good picture in the style of {}",
    "a nice painting in the style of {}",
    "a large picture in the style of {}",
    "a small picture in the style of {}",
    "a dark picture in the style of {}",
    "a bright picture in the style of {}",
    "a colourful picture in the style of {}",
    "a quiet picture in the style of {}",
    "a strange picture in the style of {}",
    "a detailed picture in the style of {}",
    "a cropped picture in the style of {}",
    "a close-up in the style of {}",
    "the picture in the style of {}",
)


# Words that an adjective is not followed by when a noun is.
_NO_NOUNS = (
    "and as at behind beside by for from in inside is near of on or over that to under wearing which with".split()
)


def subject_phrase(token: Token, data: Data) -> str:
    """What stands for the subject in a prompt: "<rare> backpack" (adjective) or "<rare>" (noun, or style of no noun).

    A token of several vectors is written once, as in the prompts of stock diffusers; `Placeholder.expand` spells its
    vectors out for the tokenizer.

    Raises:
        UserError: the token is an adjective and there is no class noun for it to qualify.
    """
    noun = " ".join(data.class_noun.split())
    if token.role == "noun" or (data.learnable == "style" and not noun):
        return token.placeholder
    if not noun:
        raise UserError(
            "class_noun is empty, and the token is an adjective; say what the subject is, as in --class backpack, or "
            "make the token a noun with --token.role noun"
        )
    return f"{token.placeholder} {noun}"


def without_token(prompt: str, subjects: Sequence[tuple[Token, Data]]) -> str:
    """The prompt as it reads with each subject's class in its place: "a photo of a backpack on the beach".

    Token and class become the class; a token before another noun, "<rare> puppy", goes if it is an adjective; a token
    by itself becomes the class. A subject without a class noun, such as most styles, keeps its token.

    Args:
        prompt: with the tokens spelled out.
        subjects: token and data of each.
    """
    for token, data in subjects:
        noun = " ".join(data.class_noun.split())
        if not noun:
            continue
        behind = rf" {re.escape(noun)}(?!\w)"
        if token.role == "adjective":
            behind += rf"| (?=\w)(?!(?:{'|'.join(_NO_NOUNS)})\b)"
        found = re.compile(rf"(?<!\w){re.escape(token.placeholder)}(?!\w)(?P<behind>{behind})?")
        prompt = found.sub(lambda match, noun=noun: "" if match["behind"] == " " else noun, prompt)  # type: ignore[misc]
    return prompt


def choose_prompt(photo: Photo, data: Data, phrase: str, rng: np.random.Generator) -> str:
    """The prompt of one training sample.

    The photo's own caption wins over `data.caption`, which wins over a template drawn from `rng`; `{}` in it becomes
    `phrase`. Of these, the share `data.caption_dropout` is replaced by the empty prompt.

    Args:
        photo: the sample's photo.
        data: the recipe's data section.
        phrase: from `subject_phrase`.
        rng: addressed by seed, stage, step and sample. The template is drawn first, so that it is the same with and
            without dropout.

    Raises:
        UserError: a caption names neither `{}` nor the token, so that the token would not be trained.
    """
    prompts = _prompts(photo, data, phrase)
    prompt = prompts[0] if len(prompts) == 1 else prompts[rng.integers(len(prompts))]
    return "" if data.caption_dropout and rng.random() < data.caption_dropout else prompt


def all_prompts(photos: Sequence[Photo], data: Data, phrase: str) -> list[str]:
    """Every prompt that `choose_prompt` can return for these photos, each once, in a fixed order.

    Raises:
        UserError: as `choose_prompt`.
    """
    prompts = list(dict.fromkeys(prompt for photo in photos for prompt in _prompts(photo, data, phrase)))
    return [*prompts, ""] if data.caption_dropout else prompts


def _prompts(photo: Photo, data: Data, phrase: str) -> list[str]:
    if photo.caption is not None:
        return [_fill(photo.caption, phrase, where=f"the caption of {photo.path.name}")]
    if data.caption.strip():
        return [_fill(data.caption.strip(), phrase, where="data.caption")]
    templates = STYLE_TEMPLATES if data.learnable == "style" else OBJECT_TEMPLATES
    return [_fill(template, phrase, where="a template") for template in templates]


def _fill(caption: str, phrase: str, *, where: str) -> str:
    name = phrase.split(" ")[0]
    if "{}" not in caption and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", caption):
        raise UserError(
            f"{where} is {caption!r}, without {{}} or {name}: the token would learn nothing; "
            f"write {{}} where {phrase!r} belongs"
        )
    return caption.replace("{}", phrase)
