"""The placeholder token: new rows of a text encoder's embedding table."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twostage.errors import UserError
from twostage.family import Family
from twostage.family_parts import Text
from twostage.recipe import Token

# Of a token, (num_vectors, D) for each text encoder by its component's name.
Rows = Mapping[str, Tensor]


@dataclass(frozen=True)
class Placeholder:
    """A token that was added to a tokenizer and a text encoder.

    Attributes:
        name: what stands in prompts, "<rare>".
        token_ids: its rows in the embedding table, one a vector.
        tokens: their names, "<rare>", "<rare>_1", ... as stock diffusers names them.
        vocabulary: size of the vocabulary before; its rows are the table's first.
        table_rows: rows of the table before, as many or more.
        notes: what the user should be told, a sentence each.
    """

    name: str
    token_ids: list[int]
    tokens: list[str]
    vocabulary: int
    table_rows: int
    notes: list[str] = field(default_factory=list)

    def expand(self, prompt: str) -> str:
        """Write the token's vectors out, as diffusers' `maybe_convert_prompt` does, for the tokenizer."""
        return prompt.replace(self.name, " ".join(self.tokens))


@dataclass(frozen=True)
class Placeholders:
    """The tokens of all subjects of a run, added one after the other."""

    each: tuple[Placeholder, ...]

    @property
    def token_ids(self) -> list[int]:
        """Of all vectors, token after token."""
        return [row for placeholder in self.each for row in placeholder.token_ids]

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary before."""
        return self.each[0].vocabulary

    @property
    def table_rows(self) -> int:
        """Rows of the table before."""
        return self.each[0].table_rows

    def expand(self, prompt: str) -> str:
        """Write out the vectors of every token. No name has another in it: the recipe sees to that."""
        for placeholder in self.each:
            prompt = placeholder.expand(prompt)
        return prompt

    def others(self, placeholder: Placeholder) -> Placeholders:
        """Those beside one of them."""
        return Placeholders(tuple(other for other in self.each if other is not placeholder))

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows of all vectors by the name of their token, (num_vectors, D) each."""
        parts = rows.split([len(placeholder.token_ids) for placeholder in self.each])
        return {placeholder.name: part for placeholder, part in zip(self.each, parts, strict=True)}


def add_placeholder(tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, token: Token) -> Placeholder:
    """Give `token` its rows at the end of the embedding table; every row that was there keeps its bits.

    Each of its vectors starts as the initializer's embedding, the mean of them where it is several tokens, or the mean
    of the vocabulary where it is empty. Vectors start equal: their positions in the prompt are enough to part them.

    Args:
        tokenizer: grows by `token.num_vectors` added tokens.
        text_encoder: its embedding table, (vocabulary, D), grows by as many rows, of the same dtype and device.
        token: name, number of vectors, initializer.

    Raises:
        UserError: the placeholder already is a word, or holds white space, or its vectors' names are taken; the
            initializer holds no token.
    """
    tokens = check_placeholder(tokenizer, token.placeholder, token.num_vectors)
    start, notes = _initial(tokenizer, embedding_table(text_encoder), token.initializer)
    if token.placeholder.isalnum():
        notes.append(
            f"the placeholder {token.placeholder!r} is found inside longer words too; <{token.placeholder}> is not"
        )

    vocabulary, table_rows = len(tokenizer), embedding_table(text_encoder).shape[0]
    tokenizer.add_tokens(tokens)
    ids = [int(tokenizer.convert_tokens_to_ids(piece)) for piece in tokens]
    assert ids == list(range(vocabulary, vocabulary + len(tokens))), ids
    _grow(text_encoder, vocabulary + len(tokens))
    with torch.no_grad():
        embedding_table(text_encoder)[ids] = start
    return Placeholder(token.placeholder, ids, tokens, vocabulary, table_rows, notes)


def add_learned(family: Family, pipeline: Any, learned: Mapping[str, Rows]) -> None:
    """Give a stock pipeline tokens that have been learned.

    Args:
        family: of the pipeline.
        pipeline: its tokenizers and text encoders grow, as by diffusers' `load_textual_inversion`.
        learned: the tokens' names and their rows.

    Raises:
        ValueError: a tokenizer has such a token already, or the rows are not as wide as its text encoder's.
    """
    for name, part in family.text.items():
        tokenizer, text_encoder = getattr(pipeline, part.tokenizer), getattr(pipeline, name)
        for token, every in learned.items():
            rows = every[name]
            tokens = [token] + [f"{token}_{number}" for number in range(1, len(rows))]
            if taken := set(tokens) & tokenizer.get_vocab().keys():
                raise ValueError(f"its {part.tokenizer} has a token {min(taken)!r} already")
            table = embedding_table(text_encoder)
            if rows.shape[1] != table.shape[1]:
                raise ValueError(f"rows of {rows.shape[1]} numbers, and those of its {name} are of {table.shape[1]}")
            tokenizer.add_tokens(tokens)
            ids = [int(tokenizer.convert_tokens_to_ids(piece)) for piece in tokens]
            _grow(text_encoder, max(ids) + 1)
            with torch.no_grad():
                embedding_table(text_encoder)[ids] = rows.to(table)


def written_out(text: Text, prompt: str) -> str:
    """A prompt with the vectors of every token that was added, as diffusers' `maybe_convert_prompt` does."""
    added = next(iter(text.tokenizers.values())).get_added_vocab()
    for token in added:
        vectors = [token]
        while f"{token}_{len(vectors)}" in added:
            vectors.append(f"{token}_{len(vectors)}")
        if len(vectors) > 1:
            prompt = prompt.replace(token, " ".join(vectors))
    return prompt


def add_rows(text_encoder: PreTrainedModel, placeholder: Placeholder | Placeholders) -> None:
    """Give a text encoder that was read anew the rows of a token that its tokenizer has; what is in them is chance."""
    _grow(text_encoder, max(placeholder.token_ids) + 1)


def check_placeholder(tokenizer: PreTrainedTokenizerBase, name: str, num_vectors: int = 1) -> list[str]:
    """The names of a new token's vectors, where `name` can be that of a new token.

    Raises:
        UserError: it already is a word, or holds white space, or its vectors' names are taken.
    """
    tokens = [name] + [f"{name}_{i}" for i in range(1, num_vectors)]
    _check_name(name, num_vectors)
    _check_free(tokenizer, name, tokens)
    return tokens


def drop_placeholder(text_encoder: PreTrainedModel, placeholder: Placeholder | Placeholders) -> None:
    """Take the token's rows off again; the table is then as large as before `add_placeholder`."""
    text_encoder.resize_token_embeddings(placeholder.table_rows)


def check_prompts(tokenizer: PreTrainedTokenizerBase, placeholder: Placeholder, prompts: Iterable[str]) -> None:
    """Make sure that all vectors of the token come before the end of what the text encoder reads.

    Raises:
        UserError: a prompt is so long, or the token of so many vectors, that some would never be trained.
    """
    for prompt in prompts:
        ids = tokenizer(placeholder.expand(prompt), truncation=True).input_ids
        lost = set(placeholder.token_ids) - set(ids)
        if lost:
            raise UserError(
                f"the prompt {prompt!r} is longer than the {tokenizer.model_max_length} tokens the text encoder reads: "
                f"{len(lost)} of the {len(placeholder.tokens)} vectors of {placeholder.name} fall off; shorten it, "
                "move the token to the front, or lower token.num_vectors"
            )


def check_word(tokenizer: PreTrainedTokenizerBase, word: str, prompts: Iterable[str]) -> list[str]:
    """Make sure that a word of the vocabulary can stand for the subject.

    Returns:
        What the user should be told, a sentence each.

    Raises:
        UserError: it holds no token, or falls off the end of a prompt.
    """
    ids = _ids(tokenizer, word)
    if not ids:
        raise UserError(f"the token {word!r} is none of the vocabulary; choose a rare word that is, such as sks")
    for prompt in prompts:
        if not set(ids) <= set(tokenizer(prompt, truncation=True).input_ids):
            raise UserError(
                f"the prompt {prompt!r} is longer than the {tokenizer.model_max_length} tokens the text encoder reads: "
                f"{word} falls off; shorten it, or move {word} to the front"
            )
    if len(ids) == 1:
        return []
    return [
        f"the token {word!r} is {len(ids)} tokens of the vocabulary ({_pieces(tokenizer, ids)}); one that stays whole, "
        "such as sks, binds to a subject more easily"
    ]


def is_in(tokenizer: PreTrainedTokenizerBase, word: str, prompt: str) -> bool:
    """Whether the tokens of a word follow each other somewhere in a prompt."""
    ids, read = _ids(tokenizer, word), _ids(tokenizer, prompt)
    return any(read[start : start + len(ids)] == ids for start in range(len(read)))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return ", ".join(repr(str(tokenizer.decode([i])).strip()) for i in ids)


def embedding_table(text_encoder: PreTrainedModel) -> Tensor:
    """The weight that token ids index, (rows, D); the parameter itself, whatever the version of transformers."""
    layer = text_encoder.get_input_embeddings()
    assert isinstance(layer, torch.nn.Embedding), type(layer)
    return layer.weight


def mean_norm(table: Tensor) -> float:
    """Mean L2 norm of the rows of (vocabulary, D); pass `weight[:placeholder.vocabulary]` to leave the new rows out."""
    return float(table.detach().float().norm(dim=1).mean())


def _check_name(name: str, num_vectors: int) -> None:
    if not name:
        raise UserError("the placeholder is empty; name the new token, as in --placeholder-token '<rare>'")
    if any(c.isspace() for c in name) or not name.isprintable() or "{}" in name:
        raise UserError(
            f"the placeholder {name!r} holds white space, {{}} or unprintable characters; choose a name like <rare>"
        )
    # CLIP's tokenizer reports "<Rare>" as "<rare>", so diffusers would not find the further vectors of "<Rare>".
    normal = unicodedata.normalize("NFC", name).lower()
    if num_vectors > 1 and name != normal:
        raise UserError(
            f"the placeholder {name!r} of {num_vectors} vectors has capitals, which stock diffusers would read as one "
            f"vector; call it {normal}"
        )


def _check_free(tokenizer: PreTrainedTokenizerBase, name: str, tokens: list[str]) -> None:
    taken = tokenizer.get_vocab()
    for piece in tokens:
        for spelling in (piece, piece.lower(), f"{piece.lower()}</w>"):
            if spelling in taken:
                whose = "" if piece == name else f" (vector {piece} of {name!r})"
                raise UserError(
                    f"the placeholder {piece!r}{whose} already is a token of the vocabulary; choose a name that is no "
                    f"word, like <{name.strip('<>') or 'rare'}-1>"
                )
    if len(tokenizer(name, add_special_tokens=False).input_ids) == 1:
        raise UserError(f"the placeholder {name!r} already is a token of the vocabulary; choose a name like <rare>")
    # diffusers takes <a>_1 for the second vector of <a>, whoever added it.
    stem, _, number = name.rpartition("_")
    if f"{name}_1" in taken or (number.isdigit() and stem in taken):
        raise UserError(f"the placeholder {name!r} would run together with a token that was added; choose another name")


def _initial(tokenizer: PreTrainedTokenizerBase, table: Tensor, initializer: str) -> tuple[Tensor, list[str]]:
    """The embedding a new token starts from, (D,), and what to tell the user about it."""
    rows = table.detach()[: len(tokenizer)]
    if not initializer:
        return rows.float().mean(dim=0).to(rows.dtype), []
    if not initializer.replace(" ", "").isprintable():
        raise UserError(f"the initializer {initializer!r} holds unprintable characters; give a word")
    ids = tokenizer(initializer, add_special_tokens=False).input_ids
    if not ids:
        raise UserError(f"the initializer {initializer!r} holds no token; give a word, or leave it empty for the mean")
    if len(ids) == 1:
        return rows[ids[0]].clone(), []
    pieces = _pieces(tokenizer, ids)
    note = f"the initializer {initializer!r} is {len(ids)} tokens ({pieces}); starting from their mean"
    return rows[ids].float().mean(dim=0).to(rows.dtype), [note]


def _grow(text_encoder: PreTrainedModel, size: int) -> None:
    """At least `size` rows. A table padded beyond its vocabulary may have them already."""
    table = embedding_table(text_encoder)
    if table.shape[0] >= size:
        return
    # Rows drawn from the table's covariance, the default, would cost seconds and be overwritten.
    text_encoder.resize_token_embeddings(size, mean_resizing=False)
    embedding_table(text_encoder).requires_grad_(table.requires_grad)
