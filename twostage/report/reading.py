"""Evaluated runs, read back from their evaluation.json."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from twostage.reading import read_json
from twostage.weights import is_archive

FORMAT = 1


class Measured(BaseModel):
    """One figure as written: the mean, its interval, and the values it is the mean of, one a prompt."""

    title: str
    value: FiniteFloat
    interval: tuple[FiniteFloat, FiniteFloat] | None = None
    range: tuple[float | None, float | None] = (None, None)
    better: Literal["higher", "lower", "neither"] = "neither"
    values: tuple[FiniteFloat, ...] = ()
    prompts: tuple[str, ...] = ()


class Result(BaseModel):
    """What was evaluated. Seconds and bytes are None where they are not known."""

    name: str
    recipe: str = ""
    base: str | None = None
    token: str | None = None
    class_noun: str | None = None
    subject: str = ""
    photos: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    photo_sha256: tuple[str, ...] = ()
    seed: int | None = None
    steps: dict[str, int] = Field(default_factory=dict)
    train_seconds: FiniteFloat | None = None
    peak_memory_bytes: FiniteFloat | None = None
    result_bytes: FiniteFloat | None = None
    device: str | None = None


class Point(BaseModel):
    """One point of a curve: figures at a step, or at a strength."""

    at: FiniteFloat
    stage: int | None = None
    figures: dict[str, Measured] = Field(default_factory=dict)


class Document(BaseModel):
    """evaluation.json."""

    format: Literal[1]
    versions: dict[str, Any] = Field(default_factory=dict)
    result: Result
    choices: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, Measured]
    base: dict[str, Measured] = Field(default_factory=dict)
    real: dict[str, Measured] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    curve: dict[str, list[Point]] = Field(default_factory=dict)
    pictures: dict[str, list[str]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_no_number(cls, data: Any) -> Any:
        """A figure that is NaN is left out and said so; the others of the run are sound."""
        if not isinstance(data, dict):
            return data
        rows = {row: data.get(row) or {} for row in ("figures", "base", "real")}
        left_out = data.get("left_out") or {}
        if not all(isinstance(table, dict) for table in (*rows.values(), left_out)):
            return data  # Of another shape altogether, which the fields' types tell.
        broken = {name for row in rows.values() for name, figure in row.items() if _holds_nan(figure)}
        kept = {
            row: {name: figure for name, figure in figures.items() if not _holds_nan(figure)}
            for row, figures in rows.items()
        }
        return {**data, **kept, "left_out": dict.fromkeys(broken, "not a number") | left_out}


def _holds_nan(figure: Any) -> bool:
    if not isinstance(figure, dict):
        return False
    values = figure.get("values")
    numbers = [figure.get("value"), *(values if isinstance(values, list) else ())]
    return any(isinstance(number, float) and not math.isfinite(number) for number in numbers)


@dataclass(frozen=True)
class Run:
    """One evaluated run.

    Attributes:
        folder: that holds its evaluation.json.
        strategy: what it is called in the report; runs of one strategy differ in subject and seed alone.
        document: what was measured.
    """

    folder: Path
    strategy: str
    document: Document

    @property
    def subject(self) -> str:
        """The subject's name, and its class where the name does not tell it: `teapot (photos)`."""
        result = self.document.result
        if result.subject and result.class_noun and result.class_noun not in result.subject:
            return f"{result.class_noun} ({result.subject})"
        return result.subject or result.class_noun or "subject"

    @property
    def seed(self) -> int:
        """Of training; 0 where it is not known."""
        return self.document.result.seed or 0

    @property
    def cell(self) -> tuple[str, int]:
        """Subject and seed: what strategies are compared within."""
        return self.subject, self.seed


@dataclass(frozen=True)
class Skipped:
    """A folder that gave no run, and why."""

    folder: Path
    reason: str


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Skipped]]:
    """Every evaluated run in the folders: run folders, comparisons (their runs/), or folders of those.

    A run that cannot be read, or is not evaluated yet, is among the skipped.
    """
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for folder in {place.resolve(): place for given in folders for place in _places(given)}.values():
        try:
            document = _read(folder)
        except ValueError as error:
            skipped.append(Skipped(folder, str(error)))
        else:
            runs.append(Run(folder, document.result.name, document))
    return _told_apart(runs), skipped


def _places(given: Path) -> list[Path]:
    """The run folders in a folder, whether or not they are evaluated."""
    if os.path.isfile(given / "evaluation.json") or os.path.isfile(given / "run.json") or not os.path.isdir(given):
        return [given]
    root = given / "runs" if (given / "runs").is_dir() else given
    found = {path.parent for name in ("evaluation.json", "run.json") for path in root.rglob(name)}
    # A folder of a comparison that holds neither was begun and not brought to an end.
    begun = (
        {path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")} if root != given else set()
    )
    covered = {above for path in found for above in (path, *path.parents)}
    return sorted(found | (begun - covered)) or [given]


def _read(folder: Path) -> Document:
    """The folder's evaluation.json.

    Raises:
        ValueError: why it cannot be had, in a few words.
    """
    path = folder / "evaluation.json"
    if is_archive(folder):
        raise ValueError("it is an archive, and archives are not unpacked here: unpack it yourself")
    if not os.path.isdir(folder):
        raise ValueError("there is no such folder")
    if not os.path.isfile(path):
        raise ValueError("it is not evaluated; run `twostage evaluate` on it")
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"evaluation.json cannot be read ({error}); evaluate it again") from error
    if isinstance(data, dict) and data.get("format") not in (None, FORMAT):
        raise ValueError(f"evaluation.json has format {data['format']}, this version reads {FORMAT}")
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise ValueError(f"evaluation.json is broken at {place} ({first['msg']}); evaluate it again") from error
    if not document.figures:
        raise ValueError("evaluation.json holds no figures; evaluate it again")
    return document


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name on the same subject and seed are different strategies: named by their folders too."""
    doubled = _doubled(runs)
    for parts in range(1, 5):

        def with_folder(run: Run, parts: int = parts) -> Run:
            return replace(run, strategy=f"{run.strategy} ({'/'.join(run.folder.resolve().parts[-parts:])})")

        named = [with_folder(run) if run.strategy in doubled else run for run in runs]
        if not _doubled(named):
            break
    return named


def _doubled(runs: Sequence[Run]) -> set[str]:
    times = Counter((run.strategy, run.cell) for run in runs)
    return {strategy for (strategy, _), count in times.items() if count > 1}


# What may differ between two runs whose figures are compared: it follows from the subject, or from the strategy.
MAY_DIFFER = ("class_prompt", "class_guidance", "away_from")


def same_choices(first: Run, second: Run) -> bool:
    """Whether two runs were measured in the same way, so that their figures can be compared prompt by prompt."""
    return comparable(first) == comparable(second)


def comparable(run: Run) -> dict[str, Any]:
    """The choices of an evaluation that two runs must share."""
    return {name: value for name, value in run.document.choices.items() if name not in MAY_DIFFER}
