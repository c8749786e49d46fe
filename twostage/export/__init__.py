"""Formats that other programs read, one file each, found by its name: `known_formats`.

A format is a module of this folder that defines

    SUMMARY                            what it is for, in a few words
    OPTIONS                            the names of `Options` it takes
    check(source, options)             refuse what cannot be exported so, before any work
    write(source, options, folder)     -> Written; the files, into an empty folder
    load(source, options, folder)      -> the stock pipeline that the files give, by the loaders their users have

Formats never import each other; what several need is in shared/. Nothing here imports torch until a format is asked
for: the command line names them in its help.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from twostage.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from twostage.families import Base
    from twostage.recipe import Recipe
    from twostage.subject.tokens import Rows

Precision = Literal["float16", "bfloat16", "float32"]
Naming = Literal["kohya", "diffusers"]


@dataclass(frozen=True)
class Options:
    """What can be chosen; None is the format's own choice, and the only one where it has no such option.

    Attributes:
        dtype: of the stored weights; float16 when not given.
        naming: of the keys in LoRA and embedding files. kohya's is read by ComfyUI, A1111 and diffusers; diffusers'
            by diffusers and ComfyUI. kohya's when not given. Tokens of several text encoders have one naming alone.
        rank: of the LoRA that is to be extracted from a change of weights that is none, or a larger one.
    """

    dtype: Precision | None = None
    naming: Naming | None = None
    rank: int | None = None

    @property
    def precision(self) -> Precision:
        return self.dtype or "float16"


@dataclass(frozen=True)
class Source:
    """A finished run, as the formats see it.

    Attributes:
        name: of its folder; exported files are called so.
        folder: the run folder.
        base: the pretrained pipeline it was trained from.
        embeddings: the learned tokens by name, (num_vectors, D) for each text encoder.
        adapters: PEFT folder by the component, such as "unet" or "text_encoder", that it adapts.
        recipe: the run's.
        prompt: asks for the subject.
        load_pipeline: makes the stock pipeline of a run folder: float32, adapters merged, tokens added.
    """

    name: str
    folder: Path
    base: Base
    embeddings: dict[str, Rows]
    adapters: dict[str, Path]
    recipe: Recipe
    prompt: str
    load_pipeline: Callable[[Path], DiffusionPipeline]

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """That of the run; read when first asked for, after what is cheap to refuse has been refused."""
        return self.load_pipeline(self.folder)

    @property
    def trainable(self) -> tuple[str, ...]:
        """Components that a run may have changed the weights of."""
        return (self.base.family.denoiser, *self.base.family.text)


@dataclass(frozen=True)
class Written:
    """What a format tells about its files.

    Attributes:
        usage: what to do with them, and what is worth knowing, a line each.
        exact: whether they hold the run's own weights, but for rounding, and should draw its pictures.
        judge: what more to tell of the pipeline that they gave; may refuse it with a UserError.
    """

    usage: list[str] = field(default_factory=list)
    exact: bool = True
    judge: Callable[[Any], list[str]] = lambda loaded: []


def known_formats() -> list[str]:
    """Names of the formats, sorted."""
    return sorted(found.name for found in iter_modules(__path__) if not found.ispkg)


def find_format(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        UserError: there is none of that name.
    """
    known = known_formats()
    if name not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise UserError(f"--to {name}: there is no such format{hint}")
    return import_module(f"{__name__}.{name}")


def default_output(run: Path, to: str) -> Path:
    """Where an export goes when nobody says: into the run folder; beside a delta."""
    return (run.parent if os.path.isfile(run) else run) / "export" / to


def check_options(name: str, options: Options) -> None:
    """Refuse an option that the format would ignore.

    Raises:
        UserError: it has no such option.
    """
    taken = find_format(name).OPTIONS
    for option in fields(options):
        if getattr(options, option.name) is not None and option.name not in taken:
            raise UserError(f"--to {name} has no --{option.name}; it takes {_list(taken)}")


def _list(names: tuple[str, ...]) -> str:
    return " and ".join(f"--{name}" for name in names) or "no such options"
