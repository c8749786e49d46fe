"""A base of which there is nothing but its configuration, and training examples for it: shapes and no values."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from twostage.errors import UserError
from twostage.families import Base, absent_parts, known_families, load_base
from twostage.family_parts import Shown
from twostage.memory.simulator import without_values
from twostage.method.examples import Batch, Examples
from twostage.prompt_states import PromptStates
from twostage.recipe_errors import nearest
from twostage.subject.tokens import Placeholder, Placeholders

_BASES = Path(__file__).parent / "bases"


class OutlinedBase(Base):
    """A base whose nets occupy what they would, within a simulation, and hold no values.

    Attributes:
        beside: what to be within to be on the host, for text encoders that stay there.
    """

    beside: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

    def component(self, name: str) -> Any:
        """As in `Base`."""
        if name not in self._loaded:
            encoders = {part.tokenizer: encoder for encoder, part in self.family.text.items()}
            limit = self.family.max_tokens(self._config(encoders[name])) if name in encoders else 0
            self._loaded[name] = _Tokenizer(limit) if limit else self._net(name)
        return self._loaded[name]

    def _net(self, name: str) -> Any:
        with _disable_current_modes():  # Values that nobody draws need not be followed.
            net = self.outline(name)
        with self.beside() if name in self.family.text else nullcontext():
            return without_values(net)

    def keep_text_beside(self, beside: Callable[[], AbstractContextManager[None]]) -> None:
        """Have text encoders be on the host, and compute there."""
        family, encode = copy(self.family), self.family.encode_text

        def encode_text(*args: Any) -> PromptStates:
            with beside():
                return encode(*args)

        vars(family)["encode_text"] = encode_text
        self.family, self.beside = family, beside

    def vocabulary(self, encoder: str) -> int:
        """Rows of a text encoder's embedding table."""
        return int(self._config(encoder)["vocab_size"])

    def _config(self, name: str) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self.folder / name / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read the configuration of {name} in {self.folder} ({error}); get it anew"
            ) from error
        return config


def known_bases() -> dict[str, Path]:
    """Folders with the configurations of bases that are known by name, by each of their names."""
    found = {}
    for folder in sorted(path.parent for path in _BASES.glob("*/names.json")):
        for name in json.loads((folder / "names.json").read_text(encoding="utf-8")):
            found[name] = folder
    return found


def outline_base(name: str) -> OutlinedBase:
    """A base's configuration, without its weights.

    Args:
        name: one of `known_bases`, 'pocket', or a diffusers folder.

    Raises:
        UserError: it is neither, or its family is not known.
    """
    known = known_bases()
    if name not in known:
        if name != "pocket" and not Path(name).expanduser().exists():
            raise UserError(
                f"base {name!r} is no folder here, and not known by name{nearest(name, list(known)) or ';'} "
                f"known are pocket, {', '.join(known)}; of others, give the folder"
            )
        base = load_base(name)
        return OutlinedBase(base.source, base.folder, base.family, base.resolution, base.reduction)
    folder = known[name]
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    family = known_families()[index["_class_name"]].without(absent_parts(index))
    return OutlinedBase(name, folder, family.configured(folder), *family.resolution(folder))


def outline_placeholders(base: OutlinedBase, names: list[tuple[str, int]]) -> dict[str, Placeholders]:
    """Tokens that stand for rows of each text encoder's table: name and number of vectors of each.

    Rows it has already take the place of new ones; those would add their own few kilobytes to it.
    """
    return {encoder: _placeholders(base.vocabulary(encoder), names) for encoder in base.family.text}


def _placeholders(vocabulary: int, names: list[tuple[str, int]]) -> Placeholders:
    each, row = [], vocabulary - sum(vectors for _, vectors in names)
    start = row
    for name, vectors in names:
        tokens = [name, *(f"{name}_{number}" for number in range(1, vectors))]
        each.append(Placeholder(name, list(range(row, row + vectors)), tokens, start, start))
        row += vectors
    return Placeholders(tuple(each))


@dataclass(frozen=True)
class OutlinedExamples(Examples):
    """Examples whose batches have the shape of a real one's, and no values.

    Attributes:
        shape: of a latent, (C, h, w).
        side: of the pictures, in pixels.
        prompts: that samples come with, in turn.
    """

    shape: tuple[int, int, int] = (0, 0, 0)
    side: int = 0
    prompts: tuple[str, ...] = ()

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """As in `Examples`."""
        size = len(rows)
        return Batch(
            torch.zeros(size, *self.shape),
            torch.zeros(size, *self.shape),
            torch.zeros(size, dtype=torch.int64),
            [self.prompts[row % len(self.prompts)] for row in rows],
            given=self._given(size),
            address=(self.seed, stage, step, rows.start),
        )

    def _given(self, size: int) -> dict[str, torch.Tensor]:
        """What the denoiser is told of pictures, squares from the start."""
        assert self.family
        side = self.side
        with _disable_current_modes():
            shown = Shown(torch.zeros(self.shape), (side, side), (side, side))
            given = self.family.picture_conditions(shown, torch.Generator())
        return {name: torch.zeros(size, *tensor.shape, dtype=tensor.dtype) for name, tensor in given.items()}


class _Tokenizer:
    """Says of every prompt that it has as many tokens as the text encoder reads."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length

    def __call__(self, prompts: list[str], **_: Any) -> SimpleNamespace:
        ids = torch.zeros(len(prompts), self.model_max_length, dtype=torch.int64)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))
