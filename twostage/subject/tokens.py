"""The placeholder token: new rows of the text encoder's embedding table, and the file they are kept in."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from twostage.errors import UserError
from twostage.recipe import Token
from twostage.weights import PICKLES, conversion
from twostage.writing import whole_file


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


def add_placeholder(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, token: Token) -> Placeholder:
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


def add_rows(text_encoder: CLIPTextModel, placeholder: Placeholder | Placeholders) -> None:
    """Give a text encoder that was read anew the rows of a token that its tokenizer has; what is in them is chance."""
    _grow(text_encoder, max(placeholder.token_ids) + 1)


def check_placeholder(tokenizer: CLIPTokenizer, name: str, num_vectors: int = 1) -> list[str]:
    """The names of a new token's vectors, where `name` can be that of a new token.

    Raises:
        UserError: it already is a word, or holds white space, or its vectors' names are taken.
    """
    tokens = [name] + [f"{name}_{i}" for i in range(1, num_vectors)]
    _check_name(name, num_vectors)
    _check_free(tokenizer, name, tokens)
    return tokens


def drop_placeholder(text_encoder: CLIPTextModel, placeholder: Placeholder | Placeholders) -> None:
    """Take the token's rows off again; the table is then as large as before `add_placeholder`."""
    text_encoder.resize_token_embeddings(placeholder.table_rows)


def check_prompts(tokenizer: CLIPTokenizer, placeholder: Placeholder, prompts: Iterable[str]) -> None:
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


def check_word(tokenizer: CLIPTokenizer, word: str, prompts: Iterable[str]) -> list[str]:
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


def is_in(tokenizer: CLIPTokenizer, word: str, prompt: str) -> bool:
    """Whether the tokens of a word follow each other somewhere in a prompt."""
    ids, read = _ids(tokenizer, word), _ids(tokenizer, prompt)
    return any(read[start : start + len(ids)] == ids for start in range(len(read)))


def _ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _pieces(tokenizer: CLIPTokenizer, ids: list[int]) -> str:
    return ", ".join(repr(str(tokenizer.decode([i])).strip()) for i in ids)


def embedding_table(text_encoder: CLIPTextModel) -> Tensor:
    """The weight that token ids index, (rows, D); the parameter itself, whatever the version of transformers."""
    layer = text_encoder.get_input_embeddings()
    assert isinstance(layer, torch.nn.Embedding), type(layer)
    return layer.weight


def mean_norm(table: Tensor) -> float:
    """Mean L2 norm of the rows of (vocabulary, D); pass `weight[:placeholder.vocabulary]` to leave the new rows out."""
    return float(table.detach().float().norm(dim=1).mean())


def embedding_file_name(name: str) -> str:
    """A file name that every system takes for the embedding of `name`: "<rare>" -> "rare.safetensors"."""
    safe = re.sub(r"[^\w.-]+", "-", name).strip("-._")
    return f"{safe or 'token'}.safetensors"


def save_embedding(path: Path, placeholder: Placeholder | str, rows: Tensor) -> None:
    """Write a token's rows as stock diffusers' `load_textual_inversion` reads them: one tensor, keyed by the name.

    Args:
        path: written whole or not at all; its folder is made.
        placeholder: or its name.
        rows: (num_vectors, D).

    Raises:
        UserError: the file cannot be written.
    """
    assert rows.ndim == 2, rows.shape
    name = placeholder if isinstance(placeholder, str) else placeholder.name
    data = save({name: rows.detach().to("cpu").contiguous()}, metadata={"format": "pt"})
    with whole_file(path, len(data)) as temporary:
        temporary.write_bytes(data)


def load_embedding(path: Path) -> tuple[str, Tensor]:
    """Read a token's name and its rows, (num_vectors, D), from a file of one tensor.

    Raises:
        UserError: the file is missing, broken, a pickle, or no embedding.
    """
    if path.suffix in PICKLES:
        raise UserError(f"the embedding {path} is no safetensors file: {conversion(path)}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"the embedding {path} is no file; give the one that stage 1 wrote")
    try:
        tensors = load(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the embedding {path}: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}; give the file that stage 1 wrote") from None
    if len(tensors) != 1:
        raise UserError(f"{path} holds {len(tensors)} tensors where an embedding is one; give the file stage 1 wrote")
    ((name, rows),) = tensors.items()
    if rows.ndim not in (1, 2) or not rows.numel():
        raise UserError(f"{path} holds a tensor of shape {tuple(rows.shape)}; an embedding is (vectors, width)")
    if not rows.is_floating_point() or not rows.isfinite().all():
        raise UserError(f"{path} holds numbers that are no embedding's: {rows.dtype}, or infinite; get it anew")
    return name, rows.reshape(-1, rows.shape[-1])


def load_learned(path: Path, token: Token, width: int | None = None) -> Tensor:
    """Read the rows, (num_vectors, D), that a run has learned for its own token.

    Args:
        path: its embedding file.
        token: of the run's recipe.
        width: D of the base's table, where that is at hand.

    Raises:
        UserError: as `load_embedding`; or they are another token's.
    """
    name, rows = load_embedding(path)
    if (name, len(rows)) != (token.placeholder, token.num_vectors):
        raise UserError(
            f"{path} holds {name!r} of {len(rows)} vectors, and the run's recipe says {token.placeholder!r} of "
            f"{token.num_vectors}; restore it, or train anew"
        )
    if width is not None and rows.shape[1] != width:
        raise UserError(
            f"{path} holds vectors of {rows.shape[1]} numbers, and the base's are of {width}; restore it, or train anew"
        )
    return rows


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


def _check_free(tokenizer: CLIPTokenizer, name: str, tokens: list[str]) -> None:
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


def _initial(tokenizer: CLIPTokenizer, table: Tensor, initializer: str) -> tuple[Tensor, list[str]]:
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


def _grow(text_encoder: CLIPTextModel, size: int) -> None:
    """At least `size` rows. A table padded beyond its vocabulary may have them already."""
    table = embedding_table(text_encoder)
    if table.shape[0] >= size:
        return
    # Rows drawn from the table's covariance, the default, would cost seconds and be overwritten.
    text_encoder.resize_token_embeddings(size, mean_resizing=False)
    embedding_table(text_encoder).requires_grad_(table.requires_grad)
