"""The runs that a request comes to: each with its recipe resolved, so that every mistake is known before one begins."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from twostage.comparing.request import ComparedSubject, Request
from twostage.errors import UserError
from twostage.recipe import Recipe
from twostage.recipe_file import STAGES, load_recipe
from twostage.weights import is_archive

_NO_SAMPLES = {"sample.per_prompt": 0}
# Letters of a value in a folder's name.
_LONGEST = 40

Settings = Mapping[str, Any]
"""Dotted option -> value."""


@dataclass(frozen=True)
class Variant:
    """A recipe with one combination of the settings that vary: a row of the comparison.

    Attributes:
        label: part of folder names: "two-stage,stage2.learning_rate=1e-06".
        source: the recipe's name or file.
        overrides: to lay over it, its name among them.
    """

    label: str
    source: str
    overrides: Settings


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        variant: its row.
        subject: that it learns.
        recipe: resolved.
    """

    variant: str
    subject: ComparedSubject
    recipe: Recipe

    @property
    def name(self) -> str:
        """Its folder inside the comparison's runs/."""
        return f"{self.variant}/{self.subject.name}/seed-{self.recipe.seed}"


def plan_variants(request: Request) -> list[Variant]:
    """The rows of a comparison, by recipe and setting.

    Raises:
        UserError: with one line for every mistake: an unknown recipe, one named twice, a setting of none, a subject
            without photos.
    """
    wrong = _mistakes_of_subjects(request)
    used: set[str] = set()
    variants: list[Variant] = []
    for source in request.recipes:
        try:
            variants += _variants(source, request, used)
        except UserError as error:
            wrong += str(error).splitlines()
    if len(variants) >= len(request.recipes):  # Else one could not be read, which might have had a use for it.
        for key in {**request.overrides, **request.vary}.keys() - used:
            wrong.append(f"{key} would do nothing: none of the recipes has a use for it")
    for label, times in Counter(variant.label for variant in variants).items():
        if times > 1:
            wrong.append(f"{times} recipes are called {label!r}; name each once, or give a file a name of its own")
    if wrong:
        raise UserError("\n".join(dict.fromkeys(wrong)))
    return variants


def plan_cells(
    request: Request, variants: list[Variant], steps: Mapping[str, Mapping[str, int]] | None = None
) -> list[Cell]:
    """Every run, in the order of subjects, seeds and rows.

    Args:
        request: what is asked.
        variants: from `plan_variants`.
        steps: of each row's stages, where they are not the recipe's: label -> {"stage1": 100}.

    Raises:
        UserError: with one line for every mistake in values, and where a class noun is missing.
    """
    wrong: list[str] = []
    cells = []
    for subject, seed, variant in product(request.subjects, request.seeds, variants):
        own = {f"{stage}.steps": count for stage, count in ((steps or {}).get(variant.label) or {}).items()}
        try:
            recipe = load_recipe(
                variant.source,
                overrides={**variant.overrides, **own, **_of_subject(subject), "seed": seed},
            )
            _check_class(recipe, subject)
        except UserError as error:
            wrong += str(error).splitlines()
        else:
            cells.append(Cell(variant.label, subject, _with_full_paths(recipe)))
    if wrong:
        raise UserError("\n".join(dict.fromkeys(wrong)))
    return cells


def scaled(recipe: Recipe, total: int) -> dict[str, int]:
    """Steps of each stage, in the recipe's proportion, that sum to `total`.

    Raises:
        UserError: that is less than one a stage.
    """
    own = {name: stage.steps for name in STAGES if (stage := getattr(recipe, name))}
    if total < len(own):
        raise UserError(f"a budget of {total} steps is too small: {recipe.name} has {len(own)} stages")
    if len(own) == 1:
        return dict.fromkeys(own, total)
    first = round(total * own["stage1"] / (own["stage1"] + own["stage2"]))
    first = min(max(first, 1), total - 1)
    return {"stage1": first, "stage2": total - first}


def _variants(source: str, request: Request, used: set[str]) -> Iterator[Variant]:
    """The combinations of settings that make a difference to a recipe; what it uses of them goes into `used`."""
    plain = load_recipe(source, base=request.overrides.get("base"))
    seen: list[Settings] = []
    for values in product(*request.vary.values()):
        varied = dict(zip(request.vary, values, strict=True))
        settings = {**request.overrides, **varied}
        applied = {key: value for key, value in settings.items() if _has_use_for(plain, settings, key)}
        used.update(applied)
        own = {key: value for key, value in varied.items() if key in applied}
        shown = {key: _shown(value) for key, value in own.items()}
        label = ",".join([plain.name, *(f"{key}={value}" for key, value in shown.items())])
        name = " ".join([plain.name, *(f"{key} {value}" for key, value in shown.items())])
        if own not in seen:
            seen.append(own)
            # Evaluation draws its own pictures; those of training are for what is decided by them.
            drawn = {} if plain.select.wanted or any(key.startswith("select.") for key in applied) else _NO_SAMPLES
            yield Variant(label, source, {**drawn, **applied, "name": name})


def _has_use_for(recipe: Recipe, settings: Settings, key: str) -> bool:
    """Whether an option makes a difference to a recipe with these settings."""
    table, stage2 = key.rpartition(".")[0], recipe.stage2
    if table in STAGES:
        return getattr(recipe, table) is not None
    if table == "adapter":
        return stage2 is not None and settings.get("stage2.train", stage2.train) == "adapter"
    if table == "prior":
        preserves = settings.get("prior.preserve", recipe.prior.preserve)
        source = settings.get("prior.source", recipe.prior.source)
        counts = recipe.prior.model_copy(update={"source": source}).counts(key.removeprefix("prior."))
        return stage2 is not None and (key == "prior.preserve" or bool(preserves) and counts)
    return True


def _shown(value: Any) -> str:
    """A value in letters that folders and recipe names take."""
    text = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    shown = re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none"
    # File systems end a name at 255 bytes, and a caption can be longer.
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _of_subject(subject: ComparedSubject) -> dict[str, Any]:
    given = {"data.photos": str(subject.photos), "data.class_noun": subject.class_noun}
    return given | ({"data.held_out": [str(path) for path in subject.held_out]} if subject.held_out else {})


def _mistakes_of_subjects(request: Request) -> list[str]:
    wrong = []
    for subject in request.subjects:
        if str(subject.photos) == ".":  # What "$UNSET" becomes, too.
            wrong.append("a folder of photos is empty or '.': name the folder with the subject's photos")
        elif is_archive(subject.photos):
            wrong.append(f"{subject.photos} is an archive, and archives are not unpacked here: unpack it yourself")
        elif not os.path.isdir(subject.photos):
            wrong.append(f"there is no folder of photos {subject.photos}")
        wrong += [f"there is no held-out photo or folder {path}" for path in subject.held_out if not path.exists()]
    for name, times in Counter(subject.name for subject in request.subjects).items():
        if times > 1:
            wrong.append(
                f"{times} subjects have photos in a folder called {name!r}, by which they are told apart; rename one"
            )
    return wrong


def _check_class(recipe: Recipe, subject: ComparedSubject) -> None:
    """Ask for the class noun: an adjective has to stand before something."""
    noun_needed = recipe.token.role == "adjective" and recipe.data.learnable == "subject"
    if noun_needed and not recipe.data.class_noun.strip():
        raise UserError(
            f"what is on the photos in {subject.photos}? say it in a word or two, as in --class backpack or "
            f"--subject {subject.photos}:backpack"
        )


def _with_full_paths(recipe: Recipe) -> Recipe:
    """The recipe for a process that stands in another folder."""
    data, prior = recipe.data, recipe.prior
    assert data.photos is not None
    own = {"photos": _full(data.photos), "held_out": tuple(_full(path) for path in data.held_out)}
    base = str(_full(Path(recipe.base).expanduser())) if os.path.isdir(os.path.expanduser(recipe.base)) else recipe.base
    update = {
        "data": data.model_copy(update=own),
        "base": "pocket" if recipe.base == "pocket" else base,
        "prior": prior.model_copy(update={"class_images": prior.class_images and _full(prior.class_images)}),
        "subjects": tuple(more.model_copy(update={"photos": _full(more.photos)}) for more in recipe.subjects),
    }
    return recipe.model_copy(update=update)


def _full(path: Path) -> Path:
    return Path(os.path.abspath(path))
