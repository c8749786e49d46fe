"""What a comparison is asked for: recipes x settings x subjects x seeds, at which budget, and how it is evaluated."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from twostage.errors import UserError
from twostage.recipe import Recipe, Section, Stage, short_names
from twostage.recipe_errors import nearest, sections
from twostage.recipe_evaluation import Evaluation
from twostage.recipe_sections import option

_T = TypeVar("_T")

# What a comparison sets itself, and the flag that does.
_OWN = {
    "seed": "--seeds",
    "data.photos": "--photos or --subject",
    "data.class_noun": "--class or --subject",
    "data.held_out": "--held-out or --subject",
    "name": "a recipe file's own name",
}


class Asked(Section):
    """What is compared."""

    photos: Path | None = option(None, "Folder with the photos of the subject.")
    class_noun: str = option("", "What the subject is.", flags=("class",))
    held_out: tuple[Path, ...] = option(
        (),
        "Photo of the subject, or folder of them, that no run may see and all are measured against; may be given "
        "several times.",
    )
    subject: tuple[str, ...] = option(
        (),
        "DIR:CLASS or DIR:CLASS:HELD_OUT in place of --photos, --class and --held-out; several times, several "
        "subjects.",
    )
    seeds: str = option("0", "Seeds of training, as 0,1,2: a run each.")
    base: str | None = option(None, "The pretrained pipeline: 'pocket', a diffusers folder, or a hub id.")
    settings: tuple[str, ...] = option(
        (),
        "OPTION=VALUE of every recipe that has a use for it, as in stage2.batch_size=2 or resolution=256; may be given "
        "several times.",
        flags=("set",),
    )
    vary: tuple[str, ...] = option(
        (),
        "OPTION=VALUE,VALUE: compare these values too, as in stage2.learning_rate=1e-6,2e-6; of several options, every "
        "combination.",
    )
    budget: str = option(
        "recipe",
        "What a run may cost: 'recipe' for what that says, steps=N optimizer steps of both stages together, or "
        "seconds=S here, by a short measurement.",
    )


class Bench(Section):
    """What is benched."""

    photos: Path = option(Path(), "The data set: folders of subjects, with prompts_and_classes.txt beside them.")
    recipes: tuple[str, ...] = option(
        ("two-stage",), "Recipe, by name or file; may be given several times.", flags=("recipe",)
    )
    num_subjects: int | None = option(
        None, "Only so many subjects, spread evenly over the list.", unit="subjects", ge=1
    )
    seeds: str = option("0", "Seeds of training, as 0,1,2: a run each.")
    base: str | None = option(None, "The pretrained pipeline: 'pocket', a diffusers folder, or a hub id.")
    settings: tuple[str, ...] = option(
        (),
        "OPTION=VALUE of every recipe that has a use for it, as in stage2.batch_size=2; may be given several times.",
        flags=("set",),
    )
    budget: str = option(
        "recipe", "What a run may cost: 'recipe', steps=N or seconds=S; see `twostage compare --help`."
    )


class Machine(Section):
    """Where it runs."""

    workers: int | None = option(
        None, "Processes on this machine; one for each GPU, or for each core, when not given.", ge=1
    )
    engine: Literal["local", "ray"] = option("local", "This machine alone, or Ray (the extra 'cluster').")
    address: str | None = option(
        None, "Of a Ray cluster: 'auto', or ray://HOST:PORT; one is started here when not given."
    )

    @model_validator(mode="after")
    def _an_address_is_of_a_cluster(self) -> Self:
        if self.address and self.engine != "ray":
            raise ValueError(f"--address {self.address} is of a Ray cluster; add --engine ray")
        if self.address and self.workers:
            raise ValueError("--workers is for this machine; the cluster at --address knows what it has")
        return self


class ComparedSubject(Section):
    """One of the subjects that every recipe is trained on, in runs of its own."""

    photos: Path
    class_noun: str = ""
    held_out: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """By which folders and reports know it."""
        return self.photos.resolve().name


class Budget(Section):
    """What each run may cost.

    recipe: what the recipe says. steps: `amount` optimizer steps, both stages together. seconds: so many steps as take
    `amount` seconds here with all that comes before training, by a short measurement. The stages keep the recipe's
    proportion.
    """

    kind: Literal["recipe", "steps", "seconds"] = "recipe"
    amount: float = 0.0


class Request(Section):
    """What a comparison is asked for.

    Attributes:
        recipes: names of shipped ones, files, or run folders.
        subjects: each is learned by every recipe.
        seeds: of training.
        overrides: dotted option -> value, laid over each recipe that has use for it.
        vary: dotted option -> values to try; of several options, every combination.
        budget: of each run.
        evaluation: how every run is evaluated.
    """

    recipes: tuple[str, ...]
    subjects: tuple[ComparedSubject, ...]
    seeds: tuple[int, ...] = (0,)
    overrides: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    budget: Budget = Budget()
    evaluation: Evaluation = Evaluation()


def read_request(asked: Asked, recipes: Sequence[str], evaluation: Evaluation) -> Request:
    """What the words of a command line ask for.

    Raises:
        UserError: with one line for each of them that cannot be read.
    """
    wrong: list[str] = []

    def read(part: Callable[[], _T]) -> _T | None:
        try:
            return part()
        except UserError as error:
            wrong.extend(str(error).splitlines())
            return None

    settings = read(lambda: read_settings(asked.settings, "--set")) or {}
    overrides = {name: values[0] for name, values in settings.items()}
    request = Request(
        recipes=tuple(recipes),
        subjects=read(lambda: _read_subjects(asked)) or (),
        seeds=read(lambda: read_seeds(asked.seeds)) or (),
        overrides=overrides | ({"base": asked.base} if asked.base is not None else {}),
        vary=read(lambda: read_settings(asked.vary, "--vary")) or {},
        budget=read(lambda: read_budget(asked.budget)) or Budget(),
        evaluation=evaluation,
    )
    if wrong:
        raise UserError("\n".join(wrong))
    return request


def _read_subjects(asked: Asked) -> tuple[ComparedSubject, ...]:
    if asked.subject and (asked.photos is not None or asked.class_noun or asked.held_out):
        raise UserError("--subject stands for --photos, --class and --held-out together: give one or the other")
    if asked.subject:
        return tuple(read_subject(text) for text in asked.subject)
    if asked.photos is None:
        raise UserError("no photos: name their folder, as in --photos photos/ --class backpack")
    return (ComparedSubject(photos=asked.photos, class_noun=asked.class_noun, held_out=asked.held_out),)


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds of "0,1,2".

    Raises:
        UserError: one is no whole number, below 0, or given twice.
    """
    seeds = []
    for part in text.split(","):
        if not re.fullmatch(r"\d{1,18}", part.strip()):
            raise UserError(f"--seeds {text}: {part.strip()!r} is no whole number from 0 on; write --seeds 0,1")
        seeds.append(int(part))
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise UserError(f"--seeds {text}: {twice[0]} is there twice; leave one out")
    return tuple(seeds)


def read_budget(text: str) -> Budget:
    """ "recipe", "steps=500" or "seconds=60".

    Raises:
        UserError: it is none of those.
    """
    if text == "recipe":
        return Budget()
    found = re.fullmatch(r"(steps|seconds)=(\d+(?:\.\d+)?)", text)
    if not found or float(found[2]) <= 0 or (found[1] == "steps" and "." in found[2]):
        raise UserError(f"--budget {text}: must be recipe, steps=N or seconds=S, as in --budget steps=500")
    return Budget(kind=found[1], amount=float(found[2]))


def read_subject(text: str) -> ComparedSubject:
    """ "DIR:CLASS" or "DIR:CLASS:HELD_OUT".

    Raises:
        UserError: it is neither.
    """
    # A colon behind one letter is that of a Windows drive.
    part = r"((?:[A-Za-z]:[\\/])?[^:]+)"
    found = re.fullmatch(rf"{part}:([^:]*)(?::{part})?", text)
    if found is None:
        raise UserError(f"--subject {text}: must be DIR:CLASS or DIR:CLASS:HELD_OUT, as in 'toy/:stuffed animal'")
    photos, noun, held_out = found.groups()
    return ComparedSubject(photos=Path(photos), class_noun=noun.strip(), held_out=(Path(held_out),) if held_out else ())


def read_settings(texts: Sequence[str], flag: str) -> dict[str, list[Any]]:
    """Options and their values, of texts such as "stage2.learning_rate=1e-6,2e-6".

    Args:
        texts: each NAME=VALUE,...; a value is written as in TOML, and text needs no quotes.
        flag: they were given with, for messages.

    Returns:
        Dotted option -> values.

    Raises:
        UserError: with one line for every text that is wrong.
    """
    settings: dict[str, list[Any]] = {}
    wrong = []
    for text in texts:
        name, equals, values = text.partition("=")
        try:
            key = option_name(name.strip())
            if not equals or not values.strip():
                raise UserError(f"{name.strip()} has no value; write {flag} {key}=VALUE")
            if key in settings:
                raise UserError(f"{key} is given twice; write its values together: {flag} {key}=A,B")
            settings[key] = _values(values)
            if any(settings[key].count(value) > 1 for value in settings[key]):
                raise UserError(f"{values}: a value is there twice; leave one out")
        except UserError as error:
            wrong.append(f"{flag} {text}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))
    return settings


def option_name(name: str) -> str:
    """The dotted name of a recipe's option that is given by that, or by one of its short names.

    Raises:
        UserError: there is no such option, or a comparison has a flag of its own for it.
    """
    name = name.removeprefix("--").replace("-", "_")
    known = _known_options()
    if name not in known:
        raise UserError(f"there is no option {name}{nearest(name, list(known))}")
    if known[name] in _OWN:
        raise UserError(f"{known[name]} is for {_OWN[known[name]]} to set")
    return known[name]


def _known_options() -> dict[str, str]:
    """Dotted names and short names -> dotted name. "stage.NAME" is that of each stage."""
    tables: dict[str, type[Section]] = {"": Recipe, "stage": Stage, **sections()}
    known = {}
    for title, section in tables.items():
        for name, field in section.model_fields.items():
            if not title and name in tables:
                continue
            dotted = f"{title}.{name}" if title else name
            known[dotted] = dotted
            for short in short_names(field):
                known.setdefault(short.replace("-", "_"), dotted)
    return known


def _values(text: str) -> list[Any]:
    try:
        return list(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        return [_value(part.strip()) for part in text.split(",")]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
