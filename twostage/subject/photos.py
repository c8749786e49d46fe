"""The subject's photos, with what lies beside them: captions and masks. All is checked before anything is computed.

a.jpg                 a photo
a.txt                 its caption
a-masklabel.png       its mask: white where the picture counts in training, black where it does not
5_portraits/b.jpg     a photo in a sub-folder of a number and a name is shown that often where the others are once
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from twostage.errors import UserError
from twostage.subject.pictures import (
    Picture,
    Unusable,
    check_picture,
    crop,
    is_picture,
    pad,
    printable,
    read_picture,
    reason_of,
)
from twostage.weights import refuse_archive

MAX_REPEATS = 1000
MASK_ENDING = "-masklabel"

Fit = Literal["crop", "pad", "bucket"]
Size = tuple[int, int]


@dataclass(frozen=True)
class Photo:
    """One photo of the subject.

    Attributes:
        path: the picture file.
        caption: the text beside it (`a.txt` for `a.jpg`), None where there is none.
        sha256: of the file's bytes, in hex; caches are keyed by it.
        size: width and height in pixels, once upright.
        repeats: how often it is shown while a photo of no sub-folder is shown once.
        mask: where it counts, a picture of the same size; None where it counts everywhere.
    """

    path: Path
    caption: str | None
    sha256: str
    size: Size
    repeats: int = 1
    mask: Picture | None = None


def find_photos(folder: Path, first: int | None = None, held_out: Collection[str] = ()) -> list[Photo]:
    """Every photo inside `folder` and its sub-folders of repeats, by name, each decoded once to prove that it can be.

    Hidden files, other sub-folders and files that are no pictures are passed over. Of a picture file with several pages
    the first counts. A caption file (UTF-8, its first line counts) belongs to the photo with the same stem, a mask to
    the photo whose stem it has before `-masklabel`.

    Args:
        folder: of the photos.
        first: leave all photos out but the first so many.
        held_out: sha256 of photos to leave out, which do not count.

    Raises:
        UserError: the folder is missing, no folder, not readable, or holds no photo or fewer than `first`; a photo or
            mask is broken, empty, animated, above 100 megapixels, of a kind that cannot be read, or not permitted to be
            (one error names them all); a caption file is empty, is no UTF-8, or fits several photos; a mask fits none,
            or several, or has another size than its photo; a sub-folder asks for too many repeats.
    """
    photos: list[Photo] = []
    bad: list[str] = []
    skipped: list[str] = []
    pictures = 0
    for place, repeats, names in places(folder):
        files = {name: None for name in names if is_picture(place / name)}
        skipped += [_shown(place / name, folder) for name in names if name not in files]
        pictures += len(files)
        good: dict[Path, Picture] = {}
        for name in files:
            try:
                good[place / name] = check_picture(place / name)
            except Unusable as reason:
                bad.append(f"{_shown(place / name, folder)} ({reason})")
        if not bad:
            photos += _with_companions(place, names, good, repeats)
    if bad:
        raise UserError(
            f"{len(bad)} of the {pictures} photos in {printable(folder)} cannot be used: {', '.join(bad)}; "
            "replace or remove them"
        )
    if not photos:
        found = f"only {some_of(skipped)}" if skipped else "nothing"
        raise UserError(f"no photos in {printable(folder)}: found {found}; put 3 to 5 JPEG or PNG photos there")
    seen = [photo for photo in photos if photo.sha256 not in held_out]
    if not seen:
        raise UserError(
            f"every photo in {printable(folder)} ({len(photos)}) is held out, and none is left to train on; hold out "
            "fewer, or add photos"
        )
    if first is not None and first > len(seen):
        some = f", {len(photos) - len(seen)} more held out" if len(seen) < len(photos) else ""
        raise UserError(
            f"num_photos {first}: {printable(folder)} holds {len(seen)}{some}; add photos, or ask for fewer"
        )
    return seen[:first]


def find_photo(file: Path, beside: Sequence[str] | None = None) -> Photo:
    """A single photo, with the caption and the mask that lie beside it.

    Args:
        file: the photo.
        beside: names of the files in its folder that have its stem, or its mask's; looked for when not given.

    Raises:
        Unusable: it is missing, broken, or no photo, or so is its mask.
        UserError: its folder cannot be read, or its caption or mask is not as `find_photos` wants it.
    """
    stems = (file.stem, file.stem + MASK_ENDING)
    names = [name for name in (_list(file.parent) if beside is None else beside) if Path(name).stem in stems]
    masks = [file.parent / name for name in names if Path(name).stem == stems[1] and is_picture(file.parent / name)]
    (photo,) = _with_companions(file.parent, names, {path: check_picture(path) for path in (file, *masks)}, 1)
    return photo


def open_photo(photo: Photo) -> Image.Image:
    """The whole photo, upright, in RGB, transparency laid on white.

    Raises:
        UserError: the file is gone or has been damaged since it was found.
    """
    return _read(photo.path, "white")


def open_mask(photo: Photo) -> Image.Image | None:
    """The whole mask, upright, as grey values; None where there is none.

    Raises:
        UserError: the file is gone or has been damaged since it was found.
    """
    return _read(photo.mask.path, "black").convert("L") if photo.mask else None


def places(folder: Path) -> list[tuple[Path, int, list[str]]]:
    """A folder of photos and its sub-folders of repeats: path, repeats, sorted names of what is inside.

    Raises:
        UserError: the folder is missing, no folder, not readable, or a sub-folder asks for too many repeats.
    """
    names = _list(folder)
    places = [(folder, 1, names)]
    for name in names:
        number = re.match(r"(\d+)_", name)
        if not number or not int(number[1]) or not os.path.isdir(folder / name):
            continue
        if int(number[1]) > MAX_REPEATS:
            raise UserError(
                f"the sub-folder {printable(folder / name)} asks for its photos {number[1]} times, and {MAX_REPEATS} "
                "is the most; give it a smaller number, or a name that starts with none"
            )
        places.append((folder / name, int(number[1]), _list(folder / name)))
    return places


def load_photo(photo: Photo, size: int | Size, fit: Fit) -> torch.Tensor:
    """Read a photo as the picture that training sees.

    Rotated as its EXIF says; transparency laid on white; colour profiles ignored; resized with LANCZOS.

    Args:
        photo: from `find_photos`.
        size: width and height in pixels, or the side of a square.
        fit: "crop" and "bucket" keep as much of the centre as has the aspect ratio; "pad", for squares, keeps
            everything and fills the short side up with white, the same white that lies under transparent pixels, so
            that a cut-out has one background.

    Returns:
        (3, height, width) float32 in [-1, 1].

    Raises:
        UserError: the file is gone or has been damaged since `find_photos`.
    """
    size = (size, size) if isinstance(size, int) else size
    image = fitted(_read(photo.path, "white"), size, fit, "white").resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1


def load_mask(photo: Photo, size: Size, latent_size: Size, fit: Fit) -> torch.Tensor:
    """How much each latent of a photo counts, by its mask: cut as the photo is, then averaged over areas.

    Args:
        photo: from `find_photos`, with or without a mask.
        size: width and height that `load_photo` is given.
        latent_size: width and height of the latents.
        fit: as for `load_photo`; what is filled up does not count.

    Returns:
        (1, latent height, latent width) float32 in [0, 1]; all 1 for a photo without mask.

    Raises:
        UserError: the mask is gone or has been damaged since `find_photos`.
    """
    mask = open_mask(photo)
    if mask is None:
        return torch.ones(1, *latent_size[::-1])
    image = fitted(mask, size, fit, "black")
    counts = torch.from_numpy(np.array(image.convert("F").resize(latent_size, Image.Resampling.BOX)))
    return (counts / 255).clamp(0, 1).unsqueeze(0)


def fitted(image: Image.Image, size: Size, fit: Fit, background: str) -> Image.Image:
    """As much of a picture as training sees, before it is scaled to `size`; see `load_photo`."""
    if fit != "pad":
        return crop(image, *size)
    assert size[0] == size[1], "padding makes squares"
    return pad(image, background)


def some_of(names: list[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _list(folder: Path) -> list[str]:
    refuse_archive(folder, "the folder with the photos")
    if os.path.isfile(folder):
        raise UserError(f"{printable(folder)} is a file, not a folder; give the folder that holds the photos")
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"the photo folder {printable(folder)} does not exist; give one that holds photos") from None
    except OSError as error:
        raise UserError(
            f"cannot list the photo folder {printable(folder)}: {reason_of(error)}; allow reading it"
        ) from None


def _with_companions(folder: Path, names: list[str], good: dict[Path, Picture], repeats: int) -> list[Photo]:
    """The photos among a folder's pictures, each with its caption and mask."""
    masks: dict[str, list[Picture]] = {}
    photos: list[Photo] = []
    same: dict[str, list[Photo]] = {}
    for path, found in good.items():
        if path.stem.endswith(MASK_ENDING):
            masks.setdefault(path.stem.removesuffix(MASK_ENDING), []).append(found)
        else:
            photos.append(Photo(path, None, found.sha256, found.size, repeats))
            same.setdefault(path.stem, []).append(photos[-1])
    captions = {Path(name).stem: folder / name for name in names if name.lower().endswith(".txt")}
    whole = []
    for photo in photos:
        stem = photo.path.stem
        caption = captions.get(stem)
        if caption and (os.path.isfile(caption) or not os.path.exists(caption)):
            _refuse_shared(caption, "caption", same[stem])
            photo = replace(photo, caption=_read_caption(caption))
        for mask in masks.pop(stem, ()):
            _refuse_shared(mask.path, "mask", same[stem])
            photo = replace(photo, mask=_checked_mask(mask, photo))
        whole.append(photo)
    if masks:
        lonely = next(iter(masks.values()))[0].path
        raise UserError(
            f"{printable(lonely)} is the mask of no photo here; name a photo's mask as the photo, with "
            f"{MASK_ENDING} behind, or remove it"
        )
    return whole


def _refuse_shared(file: Path, what: str, photos: Sequence[Photo]) -> None:
    """One of several photos with the same stem."""
    if len(photos) > 1:
        names = some_of([printable(photo.path.name) for photo in photos])
        raise UserError(f"{printable(file)} would be the {what} of {names}; give each photo a stem of its own")


def _checked_mask(mask: Picture, photo: Photo) -> Picture:
    if photo.mask:
        both = some_of([printable(path.name) for path in (photo.mask.path, mask.path)])
        raise UserError(f"{printable(photo.path)} has two masks: {both}; keep one")
    if mask.size != photo.size:
        sizes = ["x".join(map(str, size)) for size in (mask.size, photo.size)]
        raise UserError(
            f"the mask {printable(mask.path)} is {sizes[0]} and its photo {printable(photo.path.name)} {sizes[1]}; "
            "make the mask as large as the photo"
        )
    return mask


def _read_caption(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"the caption {printable(file)} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read the caption {printable(file)}: {reason_of(error)}") from None
    if "\0" in text:
        raise UserError(f"the caption {printable(file)} is not UTF-8 text; save it as UTF-8")
    if not text:
        raise UserError(f"the caption {printable(file)} is empty; write one, or remove the file to use the templates")
    return text.splitlines()[0].strip()


def _read(path: Path, background: str) -> Image.Image:
    try:
        return read_picture(path, background)
    except Unusable as reason:
        raise UserError(f"cannot read {printable(path)}: {reason}; put a whole one there, or remove it") from None


def _shown(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder)) + ("/" if os.path.isdir(path) else "")
