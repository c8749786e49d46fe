"""The pictures of the report: which are shown, and each as a small data URI, read one at a time."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from twostage.report.formats import plural
from twostage.report.pooling import BASE, Cell, Pool
from twostage.report.reading import Run
from twostage.subject.pictures import Unusable, thumbnail

MAX_PANELS, MAX_PROMPTS, MAX_PHOTOS = 12, 12, 6
LARGEST_SIDE, SMALLEST_SIDE = 512, 160
# So many bytes of pictures leave a report that goes through most mail servers, at about what WebP needs a pixel.
BYTES, BYTES_A_PIXEL = 9_000_000, 0.22
MAX_PICTURES = int(BYTES / BYTES_A_PIXEL / SMALLEST_SIDE**2)

T = TypeVar("T")


@dataclass(frozen=True)
class Shot:
    """One picture on the page: its key in the store, and what is in it, in words."""

    key: str
    alt: str


@dataclass(frozen=True)
class Row:
    """Pictures of one strategy (or of the base) by prompt; None where there is none."""

    name: str
    shots: Sequence[Shot | None]


@dataclass(frozen=True)
class Panel:
    """One subject and training seed: photos, prompts, and rows of pictures."""

    subject: str
    seed: int
    prompts: Sequence[str]
    photos: Sequence[Shot]
    rows: Sequence[Row]


@dataclass
class Gallery:
    """All panels, and the files their pictures come from.

    Attributes:
        panels: shown one at a time.
        notes: what is shown of what there is.
        files: by key.
    """

    panels: list[Panel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Pixels that the longer side of an embedded picture has at most: fewer where there are many pictures."""
        fitting = math.sqrt(BYTES / BYTES_A_PIXEL / max(len(self.files), 1))
        return int(min(LARGEST_SIDE, max(SMALLEST_SIDE, fitting)))

    def add(self, path: Path, alt: str) -> Shot | None:
        """Put a file into the store, once however often it is shown."""
        if not os.path.isfile(path):  # False, where path.is_file() complains of a name that is too long.
            return None
        key = "p" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        self.files[key] = path
        return Shot(key, alt)

    def stored(self) -> Iterator[str]:
        """Lines of the store, `["key", "data URI"]` in JSON: one picture in memory at a time.

        A picture with the bytes of an earlier one is `["key", "=its key"]`; one that cannot be read, `["key", null]`.
        """
        seen: dict[bytes, str] = {}
        for key, path in self.files.items():
            try:
                content = path.read_bytes()
                digest = hashlib.sha256(content).digest()
                shown = f"={seen[digest]}" if digest in seen else data_uri(content, self.side)
            except (OSError, Unusable):
                yield json.dumps([key, None])
            else:
                seen.setdefault(digest, key)
                yield json.dumps([key, shown])


def data_uri(content: bytes, side: int) -> str:
    """A picture as WebP, upright, no larger than `side`, without its metadata (place and camera among them).

    Raises:
        Unusable: it is no picture, or too large.
    """
    buffer = io.BytesIO()
    thumbnail(io.BytesIO(content), side).save(buffer, "WEBP", quality=84, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def choose(pool: Pool) -> Gallery:
    """What is shown: of each prompt the first picture; of many panels and prompts, an even sample."""
    gallery = Gallery()
    cells = list(dict.fromkeys(run.cell for run in pool.runs))
    cells.sort(key=lambda cell: (pool.subjects.index(cell[0]), cell[1]))
    shown = evenly(cells, MAX_PANELS)
    most = max(len(_prompts(run)) for run in pool.runs)
    columns = min(max(most, 1), MAX_PROMPTS)
    rows = max(2, MAX_PICTURES // (len(shown) * columns))
    for cell in shown:
        if panel := _panel(gallery, pool, cell, rows):
            gallery.panels.append(panel)
    if not gallery.panels:
        gallery.notes.append("The pictures are not at hand: only figures are shown.")
        return gallery
    gallery.notes.append("Of each prompt the first picture that was drawn is shown; none is picked by hand.")
    if len(shown) < len(cells):
        gallery.notes.append(
            f"{len(shown)} of {plural(len(cells), 'pair')} of subject and seed are shown, evenly picked."
        )
    most_runs = max(sum(cell in pool.cells_of(name) for name in pool.strategies) for cell in shown)
    if most_runs > rows:
        gallery.notes.append(
            f"Of up to {most_runs} strategies {rows} are shown, evenly picked, from the best on identity on."
        )
    if most > MAX_PROMPTS:
        gallery.notes.append(f"Up to {MAX_PROMPTS} of {most} prompts are shown, evenly picked; figures are over all.")
    return gallery


def evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of them at even distances, the first among them; all where there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _prompts(run: Run) -> list[str]:
    return [str(prompt) for prompt in run.document.choices.get("prompts") or ()]


def _panel(gallery: Gallery, pool: Pool, cell: Cell, most: int) -> Panel | None:
    runs = evenly([run for name in pool.strategies if (run := pool.cells_of(name).get(cell))], most)
    # Rows share the columns of the first run; a run with other prompts shows its own nowhere but in its folder.
    prompts = _prompts(runs[0])
    places = evenly(range(len(prompts)), MAX_PROMPTS)
    rows = []
    for run in runs:
        if _prompts(run) == prompts:
            rows.append(_row(gallery, run, run.strategy, "subject", places))
    with_base = next(
        (run for run in runs if run.document.pictures.get("base_subject") and _prompts(run) == prompts), None
    )
    if with_base:
        rows.append(_row(gallery, with_base, BASE, "base_subject", places))
    rows = [row for row in rows if any(row.shots)]
    if not rows:
        return None
    trained_on, held_out = _photos(runs[0])
    photos = [
        shot
        for kind, paths in (("photo trained on", trained_on), ("held-out photo", held_out))
        for number, path in enumerate(paths[:MAX_PHOTOS], 1)
        if (shot := gallery.add(path, f"{cell[0]}: {kind} {number}"))
    ]
    return Panel(cell[0], cell[1], [prompts[place] for place in places], photos, rows)


def _photos(run: Run) -> tuple[list[Path], list[Path]]:
    """Photos trained on and held out, as far as they are at hand: by their paths, else where the recipe has them.

    Only those whose bytes the run knows: else whoever made the run could have any picture of this machine put into a
    report that is passed on.
    """
    result, places, known = run.document.result, {}, _known_photos(run)
    try:
        data = tomllib.loads((run.folder / "recipe.toml").read_text(encoding="utf-8")).get("data", {})
        places = {"photos": [data["photos"]], "held_out": data.get("held_out", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # Another trainer's result has no recipe of ours.

    def found(names: Sequence[str], kind: str) -> list[Path]:
        folders = [run.folder, *(Path(place) for place in places.get(kind, ()))]
        tried = ([*(folder / name for folder in folders), *(f for f in folders if f.name == name)] for name in names)
        there = (file for files in tried if (file := next((file for file in files if os.path.isfile(file)), None)))
        return list(islice((file for file in there if _sha256(file) in known), MAX_PHOTOS))

    return found(result.photos, "photos"), found(result.held_out, "held_out")


def _known_photos(run: Run) -> set[str]:
    """sha256 of the photos that a run, or who evaluated it, has seen."""
    known = set(run.document.result.photo_sha256)
    try:
        facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
        known |= {str(photo["sha256"]) for kind in ("photos", "held_out") for photo in facts.get(kind, [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # Another trainer's result has none.
    return known


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None


def _inside(folder: Path, name: str) -> Path | None:
    """A file of a folder by its name; None where that leads out of it, by itself or by a link."""
    try:
        file = (folder / name).resolve()
        return file if file.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _row(gallery: Gallery, run: Run, name: str, kind: str, places: Sequence[int]) -> Row:
    files = run.document.pictures.get(kind, [])
    prompts = _prompts(run)
    each = max(1, len(files) // max(len(prompts), 1))
    noun = run.document.result.class_noun or run.subject
    shots = [
        gallery.add(file, f"{name}: {prompts[place].replace('{}', noun)}")
        if place * each < len(files) and (file := _inside(run.folder, files[place * each]))
        else None
        for place in places
    ]
    return Row(name, shots)
