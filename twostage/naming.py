"""The subjects' names in a run: tokens that are added to the base, or words that it has."""

from __future__ import annotations

from typing import Any

from twostage.errors import UserError
from twostage.families import Base
from twostage.method.selfcheck import check_token
from twostage.recipe import Token
from twostage.session import Session
from twostage.subject.tokens import Placeholders, add_placeholder, check_prompts, check_word


def name_subjects(session: Session, base: Base, prompts: list[list[str]]) -> dict[str, Placeholders] | None:
    """Each subject's token added to the base or found in its vocabulary, and read in each of the subject's prompts.

    Raises:
        UserError: a token cannot be added, is no word, is two subjects' at once, or is cut off in a prompt.
    """
    recipe = session.recipe
    tokens = [token for token, _ in recipe.every_subject()]
    for token in tokens:
        if (read := base.family.as_read(token.placeholder)) != token.placeholder:
            raise UserError(
                f"the token {token.placeholder!r}: stock pipelines of {base.family.title} read it as {read!r}, which "
                "would be another; call it that"
            )
    # The empty prompt of caption dropout names none.
    naming = [[base.family.as_read(prompt) for prompt in own if prompt] for own in prompts]
    placeholders: dict[str, Placeholders] = {}
    notes: list[str] = []
    outcomes: list[list[str]] = [[] for _ in tokens]
    for name, tokenizer in base.tokenizers.items():
        if recipe.stage1:
            placeholders[name] = _add_tokens(tokenizer, base.component(name), tokens, naming)
            added = placeholders[name]
            ids = [own.token_ids for own in added.each]
            notes += [note for own in added.each for note in own.notes]
            spelled = [[added.expand(prompt) for prompt in own] for own in naming]
        else:
            ids = _find_words(tokenizer, tokens, naming, notes)
            spelled = naming
        for found, own_ids, own in zip(outcomes, ids, spelled, strict=True):
            found.append(check_token(tokenizer, own_ids, own))
    named = [f"{token.placeholder} {found[0]}" for token, found in zip(tokens, outcomes, strict=True)]
    session.checks["token"] = "; ".join(named) if len(named) > 1 else outcomes[0][0]
    for note in dict.fromkeys(notes):
        session.display.say(f"note: {note}")
    return placeholders or None


def _add_tokens(tokenizer: Any, text_encoder: Any, tokens: list[Token], naming: list[list[str]]) -> Placeholders:
    """Each subject's token, new in a text encoder, and read in each of the subject's prompts."""
    added = [add_placeholder(tokenizer, text_encoder, token) for token in tokens]
    placeholders = Placeholders(tuple(added))
    for placeholder, own in zip(added, naming, strict=True):
        check_prompts(tokenizer, placeholder, map(placeholders.others(placeholder).expand, own))
    return placeholders


def _find_words(tokenizer: Any, tokens: list[Token], naming: list[list[str]], notes: list[str]) -> list[list[int]]:
    """The ids of words that the vocabulary has; what the user should be told of them is added to `notes`."""
    for token, own in zip(tokens, naming, strict=True):
        notes += check_word(tokenizer, token.placeholder, own)
    ids = [list(tokenizer(token.placeholder, add_special_tokens=False).input_ids) for token in tokens]
    for number, own_ids in enumerate(ids):
        if own_ids in ids[:number]:
            raise UserError(
                f"two subjects share a token: the text encoder reads {tokens[number].placeholder!r} as it reads "
                f"{tokens[ids.index(own_ids)].placeholder!r}; give each a word of its own"
            )
    return ids
