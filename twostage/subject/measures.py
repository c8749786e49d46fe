"""What is measured of a photo before training: all from the picture as training will see it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twostage.errors import UserError
from twostage.subject.buckets import bucket_size
from twostage.subject.copies import Thumbnail
from twostage.subject.photos import MASK_ENDING, Fit, Photo, Size, find_photo, fitted, open_mask, open_photo, places
from twostage.subject.pictures import Unusable, crop_box, is_picture, printable, read_nature

# Side at which sharpness is measured, in pixels: the same blur then has the same number in a small photo and a large.
SHARPNESS_SIDE = 256
_OVERVIEW = 512


@dataclass(frozen=True)
class Measures:
    """Of one photo.

    Attributes:
        photo: what was measured.
        name: below the folder.
        whole: all of it, at most 512 pixels a side.
        frame: what training sees of it: left, top, right, bottom as shares of its sides, 0 to 1.
        seen: the picture that training sees, RGB.
        enlarged: how many times it is enlarged for that; below 1, reduced.
        turned: its EXIF asks for turning.
        clear: share of transparent pixels, 0 to 1.
        grey: it is stored without colours.
        sharpness: variance of the Laplacian of its grey values, 0 to 255, at 256x256 pixels or its own size if smaller.
        dark, light: the grey values, 0 to 255, that 5 % of its pixels are below, and above.
        filled: share of `seen` that its mask covers, 0 to 1; None without a mask.
        cut: share of its mask that `seen` leaves out, 0 to 1; None without a mask, or of an empty one.
        thumbnail: to find copies by.
        border: histogram of the colours at its edges, of length 1.
    """

    photo: Photo
    name: str
    whole: Image.Image
    frame: tuple[float, float, float, float]
    seen: Image.Image
    enlarged: float
    turned: bool
    clear: float
    grey: bool
    sharpness: float
    dark: float
    light: float
    filled: float | None
    cut: float | None
    thumbnail: Thumbnail
    border: NDArray[np.float64]

    @property
    def kept(self) -> float:
        """Share of the photo that training sees, 0 to 1."""
        left, top, right, bottom = self.frame
        return (right - left) * (bottom - top)


def list_photos(folder: Path) -> dict[Path, list[str]]:
    """The files that training would read as photos of a folder, masks left out; none is opened.

    Returns:
        For each the names of the files beside it that have its stem, or its mask's, its own among them.

    Raises:
        UserError: the folder is missing, no folder, or not readable; see `find_photos`.
    """
    found: dict[Path, list[str]] = {}
    for place, _, names in places(folder):
        beside: dict[str, list[str]] = {}
        for name in names:
            beside.setdefault(Path(name).stem.removesuffix(MASK_ENDING), []).append(name)
        for name in names:
            if not (stem := Path(name).stem).endswith(MASK_ENDING) and is_picture(place / name):
                found[place / name] = beside[stem]
    return found


def measure_photo(
    path: Path, folder: Path, resolution: int, fit: Fit, multiple: int, beside: Sequence[str] | None = None
) -> Measures:
    """Read one photo and measure it.

    Args:
        path: from `list_photos`.
        folder: that it was found in.
        resolution: side of the square training picture, in pixels.
        fit: as for `load_photo`.
        multiple: of which a bucket's sides are, in pixels.
        beside: as `list_photos` has it; looked for when not given.

    Raises:
        Unusable: training would refuse the file, its caption or its mask.
    """
    try:
        photo = find_photo(path, beside)
        image = open_photo(photo)
        nature = read_nature(path)
        size = bucket_size(photo.size, resolution, multiple) if fit == "bucket" else (resolution, resolution)
        filled, cut = _coverage(photo, size, fit)
    except UserError as error:
        raise Unusable(str(error)) from None
    whole, part = _at_most(image, _OVERVIEW), fitted(image, size, fit, "white")
    overview = _at_most(part, _OVERVIEW).convert("L")
    dark, light = np.percentile(np.asarray(overview.resize((64, 64), Image.Resampling.BOX)), (5, 95))
    return Measures(
        photo=photo,
        name=printable(os.path.relpath(path, folder)),
        whole=whole,
        frame=_frame(photo.size, size, fit),
        seen=part.resize(size, Image.Resampling.LANCZOS),
        enlarged=size[0] / part.width,
        turned=nature.turned,
        clear=nature.clear,
        grey=nature.grey,
        sharpness=sharpness(overview),
        dark=float(dark),
        light=float(light),
        filled=filled,
        cut=cut,
        thumbnail=Thumbnail(whole),
        border=_border(whole),
    )


def sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian at 256x256 pixels, or at the picture's own size if that is smaller.

    Of grey values 0 to 255. 0 where there is no edge, or fewer than 3 pixels a side.
    """
    side = min(SHARPNESS_SIDE, *grey.size)
    if side < 3:
        return 0.0
    values = np.asarray(grey.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float64)
    centre = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((4 * centre - around).var())


def _at_most(image: Image.Image, side: int) -> Image.Image:
    """The picture, or a reduction of it to so many pixels a side; of 100 megapixels too, in a moment."""
    scale = min(1.0, side / max(image.size))
    reduced = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(reduced, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _frame(whole: Size, size: Size, fit: Fit) -> tuple[float, float, float, float]:
    if fit == "pad":
        return 0.0, 0.0, 1.0, 1.0
    left, top, right, bottom = crop_box(whole, *size)
    return left / whole[0], top / whole[1], right / whole[0], bottom / whole[1]


def _coverage(photo: Photo, size: Size, fit: Fit) -> tuple[float | None, float | None]:
    mask = open_mask(photo)
    if mask is None:
        return None, None
    seen = fitted(mask, size, fit, "black")
    total, inside = (float(np.asarray(part).sum(dtype=np.float64)) / 255 for part in (mask, seen))
    return inside / (seen.width * seen.height), 1 - inside / total if total else None


def _border(image: Image.Image) -> NDArray[np.float64]:
    """Square roots of the shares of its colours, so that a product of two is their Bhattacharyya coefficient."""
    colours = np.asarray(image.resize((64, 64), Image.Resampling.BOX).convert("LAB"), dtype=np.float64)
    edge = np.ones((64, 64), dtype=bool)
    edge[8:-8, 8:-8] = False
    counts, _ = np.histogramdd(colours[edge], bins=(8, 16, 16), range=((0, 256),) * 3)
    return np.sqrt(counts.ravel() / counts.sum())
