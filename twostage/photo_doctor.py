"""The verb of `twostage photos check`: what is to say about photos before they cost a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.evaluation.embedders import CLIPEmbedder, ViTEmbedder
from twostage.evaluation.sheet import Row, contact_sheet
from twostage.families import load_base
from twostage.pocket import pocket_folder
from twostage.quiet import quiet
from twostage.subject.findings import (
    Finding,
    find_copies,
    look_at_all,
    look_at_likeness,
    look_at_photo,
    most_typical,
    sorted_findings,
)
from twostage.subject.measures import Measures, list_photos, measure_photo
from twostage.subject.photos import Fit, find_photos
from twostage.subject.pictures import Unusable, pad, printable

SHEET = "photo-check.png"
# Two to train on should be left.
_FEWEST_TO_SPARE = 3
# Photos on the sheet: a page that viewers open. Of more, pictures are not kept, and those shown are read again.
_MOST_SHOWN = 120
_COLUMNS, _SIDE, _LETTERS, _FRAME = 6, 192, 28, (230, 30, 60)


@dataclass(frozen=True)
class Checkup:
    """What was found in a folder of photos.

    Attributes:
        folder: of the photos.
        resolution: side of the square training picture that they were looked at for, in pixels.
        photos: names of those that can be used.
        findings: worst first.
        held_out: the photo to hold out of training, None where none is to be.
        sheet: the picture that was written.
    """

    folder: Path
    resolution: int
    photos: list[str]
    findings: list[Finding]
    held_out: Path | None
    sheet: Path


def check_photos(
    folder: Path,
    output: Path,
    *,
    base: str = "pocket",
    resolution: int | None = None,
    fit: Fit = "crop",
    display: Display | None = None,
) -> Checkup:
    """Look at photos as training will see them; files that cannot be used are findings too.

    Of many photos, the sheet shows those that something is said about, the worst first, and others to fill it up. All
    photos are compared with each other, which takes time by the square of their number, if little of it.

    Args:
        folder: of the photos, with captions and masks beside them.
        output: folder for the contact sheet `photo-check.png`; one of an earlier check is replaced.
        base: what is to be trained: 'pocket', a folder or a hub id.
        resolution: side of the square training picture, in pixels; the base's own when not given.
        fit: as data.fit of a recipe.
        display: where progress is shown; the terminal when not given.

    Raises:
        UserError: the folder is missing, not readable or holds no photo that can be used; the base cannot be found; the
            output cannot be written.
    """
    files = list_photos(folder)
    if not files:
        find_photos(folder)  # It says what is there instead.
    found = load_base(base)
    side = resolution or found.resolution
    _check_output(output)

    def measure(path: Path) -> Measures:
        return measure_photo(path, folder, side, fit, found.reduction, files[path])

    looked = _read_photos(list(files), folder, fit, measure, display or terminal_display())
    measured, findings = looked.measured, looked.findings
    copies = find_copies(measured)
    findings += look_at_all(measured, copies)
    seconds = {second for _, second in copies}
    places = [place for place, photo in enumerate(measured) if photo.name not in seconds]
    distinct = [measured[place] for place in places]
    held_out = None
    if len(distinct) >= _FEWEST_TO_SPARE:
        embedded = torch.stack([looked.embedded[place] for place in places])
        findings += look_at_likeness([photo.name for photo in distinct], embedded)
        held_out = _to_hold_out(distinct, embedded, findings)
    shown = _to_show(measured, sorted_findings(findings), held_out)
    if len(shown) < len(measured):
        says = f"the sheet shows {len(shown)} of {len(measured)} photos"
        advice = "those that something is said about first; put fewer into a folder to see each"
        findings.append(Finding("note", "sheet", (), says, advice))
        shown = _read_again(shown, measure)
    findings = sorted_findings(findings)
    path = output / SHEET
    _write(_sheet(shown, findings, held_out, side), path)
    return Checkup(folder, side, [photo.name for photo in measured], findings, held_out, path)


@dataclass(frozen=True)
class _Looked:
    """What is kept of photos that were read: of many, no pictures.

    Attributes:
        measured: those that can be used.
        findings: of each by itself, and of those that cannot be used.
        embedded: for each of `measured`, what encoders see in it, (D,) of length 1; none where they are too few.
    """

    measured: list[Measures]
    findings: list[Finding]
    embedded: list[Tensor]


def _read_photos(
    files: Sequence[Path], folder: Path, fit: Fit, measure: Callable[[Path], Measures], display: Display
) -> _Looked:
    """Look at one photo after the other."""
    looked, said = _Looked([], [], []), []
    embed = _encoders() if len(files) >= _FEWEST_TO_SPARE else None
    with display.progress("reading photos", len(files)) as update:
        for done, path in enumerate(files, start=1):
            try:
                photo = measure(path)
            except Unusable as reason:
                name = printable(os.path.relpath(path, folder))
                looked.findings.append(
                    Finding("error", "unusable", (name,), str(reason), "training refuses the folder until then")
                )
            else:
                said += look_at_photo(photo, fit)
                if embed:
                    looked.embedded.append(embed(photo.seen))
                looked.measured.append(photo if len(files) <= _MOST_SHOWN else _without_pictures(photo))
            update(done)
    if not looked.measured or not looked.findings:
        looked.findings.extend(_refused(folder, usable=bool(looked.measured)))
    looked.findings.extend(said)
    return looked


def _without_pictures(photo: Measures) -> Measures:
    nothing = Image.new("RGB", (1, 1))
    return replace(photo, whole=nothing, seen=nothing)


def _read_again(photos: Sequence[Measures], measure: Callable[[Path], Measures]) -> list[Measures]:
    """With their pictures; those that are gone or damaged by now without."""
    read = []
    for photo in photos:
        try:
            read.append(measure(photo.photo.path))
        except Unusable:
            read.append(photo)
    return read


def _to_show(photos: Sequence[Measures], findings: Sequence[Finding], held_out: Path | None) -> list[Measures]:
    """Those on the sheet, in their order: all, or those of the worst findings, and some of the rest."""
    by_name = {photo.name: photo for photo in photos}
    first = [photo.name for photo in photos if photo.photo.path == held_out]
    about = [name for finding in findings for name in finding.photos if name in by_name]
    chosen = set(list(dict.fromkeys([*first, *about, *by_name]))[:_MOST_SHOWN])
    return [photo for photo in photos if photo.name in chosen]


def _to_hold_out(distinct: Sequence[Measures], embedded: Tensor, findings: Sequence[Finding]) -> Path | None:
    """The most typical photo that no copy is left of to train on; a faultless one where there is one."""
    copied = {name for finding in findings if finding.kind == "copy" for name in finding.photos}
    faulty = {name for finding in findings if finding.level != "note" for name in finding.photos}
    unlike = {name for finding in findings if finding.kind == "unlike" for name in finding.photos}
    names = [photo.name for photo in distinct]
    possible = [name for name in names if name not in copied]
    sound = [name for name in possible if name not in faulty] or possible
    candidates = [name for name in sound if name not in unlike] or sound
    if not candidates:
        return None
    return distinct[names.index(most_typical(names, embedded, candidates))].photo.path


def _refused(folder: Path, *, usable: bool) -> list[Finding]:
    """What training refuses of the folder as a whole, as a caption that belongs to two photos."""
    try:
        find_photos(folder)
    except UserError as error:
        if not usable:
            raise
        return [Finding("error", "unusable", (), str(error), "training refuses the folder until then")]
    return []


def _encoders() -> Callable[[Image.Image], Tensor]:
    """What the bundled ViT and CLIP see, side by side, (D,) of length 1: together they tell more than either."""
    with quiet():
        encoders = ViTEmbedder(pocket_folder("vit")), CLIPEmbedder(pocket_folder("clip"))

    def embed(picture: Image.Image) -> Tensor:
        square = pad(picture, "white")
        return torch.cat([encoder.images([square])[0] for encoder in encoders]) / len(encoders) ** 0.5

    return embed


def _sheet(photos: Sequence[Measures], findings: Sequence[Finding], held_out: Path | None, side: int) -> Image.Image:
    """Each photo with the frame of what training sees, and below it that, with its findings."""
    rows = []
    for start in range(0, len(photos), _COLUMNS):
        some = photos[start : start + _COLUMNS]
        rows.append(Row("photos; framed: what training sees", [_framed(photo) for photo in some]))
        said = [_caption(photo, findings, held_out) for photo in some]
        rows.append(Row(f"what training sees, at {side} pixels", [pad(photo.seen, "white") for photo in some], said))
    return contact_sheet(rows, _SIDE)


def _caption(photo: Measures, findings: Sequence[Finding], held_out: Path | None) -> str:
    name = photo.name if len(photo.name) <= _LETTERS else photo.name[: _LETTERS - 3] + "..."
    said = [f"{name}: to hold out" if photo.photo.path == held_out else name]
    for finding in findings:
        if photo.name in finding.photos:
            others = [other for other in finding.photos if other != photo.name]
            said.append(f"with {others[0]}: {finding.says}" if finding.kind == "copy" else finding.says)
    return "; ".join(said)


def _framed(photo: Measures) -> Image.Image:
    picture = photo.whole.resize(_within(photo.whole.size, _SIDE), Image.Resampling.LANCZOS)
    left, top, right, bottom = photo.frame
    x, y = round(left * picture.width), round(top * picture.height)
    # Of a photo many times longer than wide, the frame is less than a pixel.
    box = (x, y, max(x, round(right * picture.width) - 1), max(y, round(bottom * picture.height) - 1))
    ImageDraw.Draw(picture).rectangle(box, outline=_FRAME, width=2)
    return pad(picture, "white")


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _check_output(output: Path) -> None:
    """Find out that the sheet cannot be written before the photos are read."""
    nearest = next(path for path in (output.absolute(), *output.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write to {output}: {nearest} is no folder of yours to write; choose another --output")


def _write(sheet: Image.Image, path: Path) -> None:
    temporary = path.with_name(f".writing-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(temporary, format="PNG")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
    finally:
        temporary.unlink(missing_ok=True)
