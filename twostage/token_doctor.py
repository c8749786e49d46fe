"""The verbs of `twostage token`: find a token that means nothing yet, and see what a base makes of one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.evaluation.sheet import Row, contact_sheet
from twostage.families import Base, load_base
from twostage.finished import placed
from twostage.method.sampling import assemble, draw
from twostage.recipe_file import load_recipe
from twostage.subject.encoders import Encoder
from twostage.subject.inspection import Inspection, inspect_text
from twostage.subject.rare_tokens import InitialWord, RareToken, RareTokens

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
# Sides of a picture on the contact sheet, in pixels.
_SMALLEST, _LARGEST = 128, 256


@dataclass(frozen=True)
class Suggestions:
    """What could name a subject in prompts to a base, or start its token.

    Attributes:
        base: what the user named.
        merges: pairs merged to make its vocabulary: what ranks count up to.
        noun: the noun that pull was measured on.
        tokens: rare tokens, or sequences of them, the best first.
        adjectives: rare adjectives of one token.
        initial_words: words of one token that are nearest to the class; none where no class was named.
        notes: what the user should know, a sentence each.
    """

    base: str
    merges: int
    noun: str
    tokens: list[RareToken]
    adjectives: list[RareToken]
    initial_words: list[InitialWord]
    notes: list[str]


def suggest_tokens(
    base: str, *, class_noun: str = "", count: int = 10, length: int = 1, display: Display | None = None
) -> Suggestions:
    """Rare tokens of a base's vocabulary, rare adjectives, and initial words for a class.

    Args:
        base: 'pocket', a folder or a hub id.
        class_noun: what the subject is; without it there are no initial words.
        count: of each.
        length: tokens in a rare token's text, 1 to 3.
        display: where progress is shown; the terminal when not given.

    Raises:
        UserError: the base cannot be loaded or has no merges, or the class holds no word.
    """
    # Further encoders of a base read the same vocabulary as its first.
    encoder = _encoders(load_base(base))[0]
    noun = " ".join(class_noun.split())
    rare = RareTokens(encoder, noun, display or terminal_display())
    tokens = rare.suggest(count, length)
    notes = list(rare.notes)
    if noun and not any(measure.name == "neighbours" and measure.tells for measure in rare.measures):
        notes.append("nearness of embeddings says nothing in this base: do not rely on the initial words")
    if len(tokens) < count:
        notes.append(f"there are {len(tokens)} such texts in this vocabulary, not {count}; try another --length")
    return Suggestions(
        base,
        encoder.vocabulary.merges,
        rare.noun,
        tokens,
        rare.adjectives(count),
        rare.initial_words(count) if noun else [],
        notes,
    )


def inspect_token(
    base: str, text: str, *, class_noun: str = "", prompt: str = "", display: Display | None = None
) -> list[Inspection]:
    """What each text encoder of a base makes of a text.

    Args:
        base: 'pocket', a folder or a hub id.
        text: a token, a word, or several.
        class_noun: what the text qualifies; any noun when empty.
        prompt: also say where this prompt is cut off; {} stands for the text and the class.
        display: where progress is shown; the terminal when not given.

    Raises:
        UserError: the base cannot be loaded, the text holds no token, or the class no word.
    """
    noun = " ".join(class_noun.split())
    filled = prompt.replace("{}", f"{text} {noun}".strip())
    display = display or terminal_display()
    return [
        inspect_text(encoder, text, noun=noun, prompt=filled, display=display) for encoder in _encoders(load_base(base))
    ]


def draw_token(
    base: str,
    text: str,
    picture: Path,
    *,
    class_noun: str = "",
    count: int = 4,
    seed: int = 0,
    display: Display | None = None,
) -> Path:
    """What a base draws for a text, beside what it draws without it from the same noise.

    Args:
        base: 'pocket', a folder or a hub id.
        text: a token, a word, or several.
        picture: the contact sheet to write.
        class_noun: what the text qualifies; nothing when empty.
        count: pictures a row.
        seed: of the first; the next ones count up.
        display: where progress is shown; the terminal when not given.

    Raises:
        UserError: the base cannot be loaded, or the picture cannot be written; an existing file is never replaced.
    """
    check_picture(picture)
    loaded = load_base(base)
    options = load_recipe("two-stage", base=base).sample
    pipeline = placed(loaded, assemble(loaded))
    noun = " ".join(class_noun.split())
    with_text = f"a photo of a {text} {noun}".strip()
    without = f"a photo of a {noun}" if noun else "a photo"
    rows, seeds = [], [seed + index for index in range(count)]
    with (display or terminal_display()).progress("drawing", 2 * count) as update:
        for prompt in (with_text, without):
            pictures = draw(pipeline, [prompt] * count, seeds, options, loaded.resolution)
            rows.append(Row(f'"{prompt}"', pictures, [f"seed {number}" for number in seeds]))
            update(count * len(rows))
    sheet = contact_sheet(rows, side=min(max(loaded.resolution, _SMALLEST), _LARGEST))
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        with picture.open("xb") as file:
            sheet.save(file, format="JPEG" if picture.suffix.lower() in (".jpg", ".jpeg") else picture.suffix[1:])
    except OSError as error:
        raise UserError(f"cannot write the picture {picture}: {error.strerror or error}") from error
    return picture


def check_picture(picture: Path) -> None:
    """Find out that a picture cannot be written before minutes go into drawing it.

    Raises:
        UserError: it exists, its name is no picture's, or its folder is not the user's to write.
    """
    if picture.suffix.lower() not in PICTURES:
        raise UserError(f"--output {picture}: a picture is called {', '.join(PICTURES[:-1])} or {PICTURES[-1]}")
    if os.path.lexists(picture):
        raise UserError(f"{picture} exists already; name another file with --output")
    nearest = next(path for path in picture.absolute().parents if os.path.exists(path))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write {picture}: {nearest} is no folder of yours to write; choose another --output")


def _encoders(base: Base) -> list[Encoder]:
    """Every text encoder of the base with its tokenizer."""
    text = base.text
    return [Encoder(name, text.tokenizers[name], encoder) for name, encoder in text.encoders.items()]
