"""Any picture file as an upright RGB picture, or the reason why it cannot be one."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from twostage.errors import printable

MAX_MEGAPIXELS = 100
# Page descriptions, videos and scientific grids that PIL registers beside pictures: some run another program to open.
_NOT_PHOTOS = {"EPS", "WMF", "PDF", "MPEG", "HDF5", "GRIB", "BUFR"}
# Their further frames are time. In the other formats they are pages, layers, or (MPO, what many phones write) previews.
_ANIMATIONS = {"GIF", "PNG", "WEBP", "AVIF", "FLI"}
# Phones and cameras write these and PIL does not read them; to pass over them in silence would lose photos.
_FOREIGN = {".heic", ".heif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".svg"}
# What PIL's decoders were seen to raise on damaged bytes; there is no common base class.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Picture:
    """A picture file that was decoded once, to prove that it can be.

    Attributes:
        path: the file.
        sha256: of its bytes, in hex.
        size: width and height in pixels, once upright.
    """

    path: Path
    sha256: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Nature:
    """What is not to be seen once a picture is upright and RGB.

    Attributes:
        turned: its EXIF asks for turning or mirroring.
        clear: share of its pixels that are more transparent than not, 0 to 1.
        grey: it is stored without colours.
    """

    turned: bool
    clear: float
    grey: bool


class Unusable(Exception):
    """Why one picture cannot be used, in a few words."""


def is_picture(path: Path) -> bool:
    """Whether to look into what lies there: hidden files, folders and other endings are passed over."""
    # os.path's answer is False where Path's is a PermissionError.
    no_file = os.path.exists(path) and not os.path.isfile(path)
    return not path.name.startswith(".") and not no_file and path.suffix.lower() in _readable_suffixes() | _FOREIGN


def check_picture(path: Path) -> Picture:
    """Read every byte of a picture file.

    Raises:
        Unusable: it is broken, empty, animated, above 100 megapixels, of a kind that cannot be read, or not permitted
            to be.
    """
    if path.suffix.lower() in _FOREIGN - _readable_suffixes():
        raise Unusable(f"{path.suffix[1:].upper()} cannot be read: convert it to JPEG")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return Picture(path, digest, _decode(file, "white", quick=True)[1])
    except FileNotFoundError:
        raise Unusable("a link to nothing") from None
    except OSError as error:
        raise Unusable(reason_of(error)) from None


def read_picture(path: Path, background: str = "white") -> Image.Image:
    """The picture in RGB, upright, laid on `background` where it is transparent.

    Raises:
        Unusable: it has been damaged since it was checked.
    """
    try:
        with path.open("rb") as file:
            return _decode(file, background)[0]
    except FileNotFoundError:
        raise Unusable("it was there a moment ago and is gone") from None
    except OSError as error:
        raise Unusable(reason_of(error)) from None


def thumbnail(file: BinaryIO, side: int) -> Image.Image:
    """A picture in RGB, upright, no larger than `side` pixels; of an animation the first frame.

    Raises:
        Unusable: it is broken, above 100 megapixels, or of a kind that cannot be read.
    """
    with _decoding():
        image = _opened(file)
        image.draft("RGB", (side, side))
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    return upright


def read_nature(path: Path) -> Nature:
    """What is told of a picture file that can be read.

    Raises:
        Unusable: it has been damaged since it was checked.
    """
    with _decoding(), path.open("rb") as file:
        image = _opened(file)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        clear = 0.0
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A").histogram()
            clear = sum(alpha[:128]) / sum(alpha)
        return Nature(orientation in range(2, 9), clear, image.mode.startswith(("1", "L", "I", "F")))


def crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """As much of its centre as has the aspect ratio of width to height."""
    return image.crop(crop_box(image.size, width, height))


def crop_box(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """Where `crop` cuts a picture of that size: left, top, right, bottom in pixels."""
    wide = min(size[0], max(1, round(size[1] * width / height)))
    high = min(size[1], max(1, round(size[0] * height / width)))
    left, top = (size[0] - wide) // 2, (size[1] - high) // 2
    return left, top, left + wide, top + high


def pad(image: Image.Image, background: str) -> Image.Image:
    """A square with all of it in the middle."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side), background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def reason_of(error: Exception) -> str:
    """What the system says of an error, in small letters and printable."""
    return printable(getattr(error, "strerror", None) or error).lower()


def _readable_suffixes() -> set[str]:
    return {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_PHOTOS
    }


def _decode(file: BinaryIO, background: str, *, quick: bool = False) -> tuple[Image.Image, tuple[int, int]]:
    """An upright RGB picture, and its full size; `quick` reads all bytes of a JPEG but computes fewer of its pixels."""
    if not os.fstat(file.fileno()).st_size:
        raise Unusable("0 bytes")
    with _decoding():
        image = _opened(file)
        _refuse_animated(image)
        stored = image.size
        drafted = quick and image.draft("RGB", (64, 64)) is not None
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        upright = _to_rgb(ImageOps.exif_transpose(image), background)
    if not drafted:
        return upright, upright.size
    return upright, stored[::-1] if turned else stored


def _opened(file: BinaryIO) -> Image.Image:
    """A picture of which nothing but the head is read yet: what can be refused by that is."""
    image: Image.Image = Image.open(file, formats=sorted(set(Image.OPEN) - _NOT_PHOTOS))
    _refuse_large(image)
    return image


@contextmanager
def _decoding() -> Iterator[None]:
    """Tell what decoders raise in a few words, as Unusable."""
    with warnings.catch_warnings():
        # PIL warns of sizes that are allowed here, and of flaws that do not keep a picture from being read.
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError:
            raise Unusable(f"more than {MAX_MEGAPIXELS} megapixels") from None
        except Image.UnidentifiedImageError:
            raise Unusable("broken, or not a picture") from None
        except _DECODER_ERRORS as error:
            raise Unusable(f"broken: {printable(error)}") from None


def _refuse_large(image: Image.Image) -> None:
    if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
        raise Unusable(f"{image.width}x{image.height}, more than {MAX_MEGAPIXELS} megapixels")


def _refuse_animated(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if image.format in _ANIMATIONS and frames > 1:
        raise Unusable(f"animated, {frames} frames")


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_to_rgb(image)
    if image.mode == "LAB":
        raise Unusable("LAB colours cannot be read: convert it to JPEG")
    if image.has_transparency_data:
        straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", straight.size, background), straight).convert("RGB")
    return image.convert("RGB")


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats, to 8 bits: PIL's own conversion would clip it to white."""
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
    high = float(grey.max())
    if image.mode == "F":
        full = next((full for full in (1.0, 255.0, 65535.0) if high <= full), high)
    else:
        full = 65535.0 if high <= 65535 else 2.0**31 - 1
    return Image.fromarray((grey.clip(0, full) * (255 / full)).round().astype(np.uint8)).convert("RGB")
