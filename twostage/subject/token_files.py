"""The file that a learned token is kept in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from twostage.errors import UserError
from twostage.family import Family
from twostage.recipe import Token
from twostage.subject.tokens import Rows
from twostage.weights import PICKLES, conversion
from twostage.writing import whole_file

# Rows, (num_vectors, D), by the key that the text encoder they are for has in files; a single one has none.
Keyed = Mapping[str, Tensor]
# Where a file of several keys, which no name is left in, has that of the token.
_NAME = "token"


def embedding_file_name(name: str) -> str:
    """A file name that every system takes for the embedding of `name`: "<rare>" -> "rare.safetensors"."""
    safe = re.sub(r"[^\w.-]+", "-", name).strip("-._")
    return f"{safe or 'token'}.safetensors"


def save_embedding(path: Path, name: str, rows: Keyed | Tensor) -> None:
    """Write a token's rows.

    Those of a single text encoder are one tensor, keyed by the token's name, as stock diffusers'
    `load_textual_inversion` reads it; those of several are keyed `clip_l`, `clip_g` and `t5xxl`, as is usual for
    Stable Diffusion XL.

    Args:
        path: written whole or not at all; its folder is made.
        name: of the token.
        rows: (num_vectors, D), by their key.

    Raises:
        UserError: the file cannot be written.
    """
    keyed = {"": rows} if isinstance(rows, Tensor) else rows
    assert all(tensor.ndim == 2 for tensor in keyed.values()), {key: t.shape for key, t in keyed.items()}
    tensors = {key or name: tensor.detach().to("cpu").contiguous() for key, tensor in keyed.items()}
    metadata = {"format": "pt"} if "" in keyed else {"format": "pt", _NAME: name}
    data = save(tensors, metadata=metadata)
    with whole_file(path, len(data)) as temporary:
        temporary.write_bytes(data)


def load_embedding(path: Path) -> tuple[str, Keyed]:
    """Read a token's name and its rows.

    Returns:
        the name, empty where a file of several text encoders does not say; and the rows by their key.

    Raises:
        UserError: the file is missing, broken, a pickle, or no embedding.
    """
    if path.suffix in PICKLES:
        raise UserError(f"the embedding {path} is no safetensors file: {conversion(path)}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"the embedding {path} is no file; give the one that stage 1 wrote")
    try:
        tensors = load(path.read_bytes())
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except OSError as error:
        raise UserError(f"cannot read the embedding {path}: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}; give the file that stage 1 wrote") from None
    if not tensors or len(tensors) > 1 and not all(re.fullmatch(r"clip_\w+|t5\w*", key) for key in tensors):
        raise UserError(f"{path} holds {len(tensors)} tensors where an embedding is one; give the file stage 1 wrote")
    for rows in tensors.values():
        if rows.ndim not in (1, 2) or not rows.numel():
            raise UserError(f"{path} holds a tensor of shape {tuple(rows.shape)}; an embedding is (vectors, width)")
        if not rows.is_floating_point() or not rows.isfinite().all():
            raise UserError(f"{path} holds numbers that are no embedding's: {rows.dtype}, or infinite; get it anew")
    keyed = {key: rows.reshape(-1, rows.shape[-1]) for key, rows in tensors.items()}
    if len({len(rows) for rows in keyed.values()}) > 1:
        raise UserError(f"{path} holds different numbers of vectors for its text encoders; get it anew")
    if len(keyed) == 1 and _NAME not in metadata:
        ((name, rows),) = keyed.items()
        return name, {"": rows}
    return metadata.get(_NAME, ""), keyed


def load_learned(path: Path, token: Token) -> Keyed:
    """Read the rows that a run has learned for its own token.

    Args:
        path: its embedding file.
        token: of the run's recipe.

    Raises:
        UserError: as `load_embedding`; or they are another token's.
    """
    name, keyed = load_embedding(path)
    vectors = len(next(iter(keyed.values())))
    if (name, vectors) != (token.placeholder, token.num_vectors):
        raise UserError(
            f"{path} holds {name!r} of {vectors} vectors, and the run's recipe says {token.placeholder!r} of "
            f"{token.num_vectors}; restore it, or train anew"
        )
    return keyed


def keyed_rows(family: Family, rows: Rows) -> Keyed:
    """Rows by the key they have in files, of rows by the text encoder."""
    return {part.key: rows[name] for name, part in family.text.items()}


def rows_by_encoder(path: Path, keyed: Keyed, family: Family, widths: Mapping[str, int] | None = None) -> Rows:
    """Rows by the text encoder, of rows by the key they have in files.

    Args:
        path: of the file.
        keyed: what is in it.
        family: of the base they are to go with.
        widths: D of its text encoders, where that is at hand.

    Raises:
        UserError: they were learned for another family, or for text encoders of another width.
    """
    wanted = {part.key for part in family.text.values()}
    if keyed.keys() != wanted:
        found = " and ".join(f"{key or 'one text encoder'} ({rows.shape[1]} wide)" for key, rows in keyed.items())
        raise UserError(
            f"the embedding {path} is for {found}, and a {family.pipeline} reads "
            f"{' and '.join(sorted(wanted - {''})) or 'with one text encoder'}: it is a token of another family; give "
            "one that was learned on this base"
        )
    rows = {name: keyed[part.key] for name, part in family.text.items()}
    for name, own in rows.items():
        if widths is not None and own.shape[1] != widths[name]:
            raise UserError(
                f"{path} holds vectors of {own.shape[1]} numbers, and the base's {name} has {widths[name]}; give one "
                "that was learned on this base, or train anew"
            )
    return rows
