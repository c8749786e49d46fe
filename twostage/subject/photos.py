"""The subject's photos: found, checked before anything is computed, and read as tensors."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from twostage.errors import UserError

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
class Photo:
    """One photo of the subject.

    Attributes:
        path: the picture file.
        caption: the text beside it (`a.txt` for `a.jpg`), None where there is none.
        sha256: of the file's bytes, in hex; caches are keyed by it.
    """

    path: Path
    caption: str | None
    sha256: str


class _Unusable(Exception):
    """Why one photo cannot be used, in a few words."""


def find_photos(folder: Path) -> list[Photo]:
    """Every photo directly inside `folder`, sorted by name, each decoded once to prove that it can be.

    Hidden files, sub-folders and files that are no pictures are passed over. Of a picture file with several pages
    the first counts. A caption file (UTF-8, its first line counts) belongs to the photo with the same stem.

    Raises:
        UserError: the folder is missing, no folder, not readable or holds no photo; a photo is broken, empty, animated,
            above 100 megapixels, of a kind that cannot be read, or not permitted to be (one error names them all); a
            caption file is empty, is no UTF-8, or fits several photos.
    """
    names = _list(folder)
    readable = _readable_suffixes()
    photos: list[Path] = []
    bad: list[str] = []
    skipped: list[str] = []
    hashes: dict[Path, str] = {}
    for name in names:
        path = folder / name
        suffix = path.suffix.lower()
        # os.path's answer is False where Path's is a PermissionError.
        no_file = os.path.exists(path) and not os.path.isfile(path)
        if name.startswith(".") or no_file or suffix not in readable | _FOREIGN:
            skipped.append(_printable(name) + ("/" if os.path.isdir(path) else ""))
            continue
        photos.append(path)
        try:
            hashes[path] = _check(path)
        except _Unusable as reason:
            bad.append(f"{_printable(name)} ({reason})")
    if bad:
        raise UserError(
            f"{len(bad)} of the {len(photos)} photos in {_printable(folder)} cannot be used: {', '.join(bad)}; "
            "replace or remove them"
        )
    if not photos:
        found = f"only {_some(skipped)}" if skipped else "nothing"
        raise UserError(f"no photos in {_printable(folder)}: found {found}; put 3 to 5 JPEG or PNG photos there")
    captions = _find_captions(folder, names, photos)
    return [Photo(path, captions.get(path), hashes[path]) for path in photos]


def load_photo(photo: Photo, resolution: int, fit: Literal["crop", "pad"]) -> torch.Tensor:
    """Read a photo as the square picture that training sees.

    Rotated as its EXIF says; transparency laid on white; colour profiles ignored; resized with LANCZOS.

    Args:
        photo: from `find_photos`.
        resolution: side of the square in pixels.
        fit: "crop" keeps the centre square; "pad" keeps everything and fills the short side up with white, the same
            white that lies under transparent pixels, so that a cut-out has one background.

    Returns:
        (3, resolution, resolution) float32 in [-1, 1].

    Raises:
        UserError: the file is gone or has been damaged since `find_photos`.
    """
    try:
        with photo.path.open("rb") as file:
            image = _decode(file)
    except FileNotFoundError:
        raise UserError(f"{_printable(photo.path)} was there a moment ago and is gone; put it back") from None
    except (_Unusable, OSError) as error:
        raise UserError(f"cannot read {_printable(photo.path)}: {_reason(error)}; replace or remove it") from None
    image = _crop(image) if fit == "crop" else _pad(image)
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1


def _list(folder: Path) -> list[str]:
    if os.path.isfile(folder):
        raise UserError(f"{_printable(folder)} is a file, not a folder; give the folder that holds the photos")
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"the photo folder {_printable(folder)} does not exist; give one that holds photos") from None
    except OSError as error:
        raise UserError(
            f"cannot list the photo folder {_printable(folder)}: {_reason(error)}; allow reading it"
        ) from None


def _readable_suffixes() -> set[str]:
    return {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_PHOTOS
    }


def _check(path: Path) -> str:
    """The file's sha256, after decoding the picture."""
    if path.suffix.lower() in _FOREIGN - _readable_suffixes():
        raise _Unusable(f"{path.suffix[1:].upper()} cannot be read: convert it to JPEG")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            _decode(file, quick=True)
    except FileNotFoundError:
        raise _Unusable("a link to nothing") from None
    except OSError as error:
        raise _Unusable(_reason(error)) from None
    return digest


def _decode(file: BinaryIO, *, quick: bool = False) -> Image.Image:
    """An upright RGB picture. `quick` reads every byte of a JPEG but computes fewer of its pixels."""
    if not os.fstat(file.fileno()).st_size:
        raise _Unusable("0 bytes")
    with warnings.catch_warnings():
        # PIL warns of sizes that are allowed here, and of flaws that do not keep a picture from being read.
        warnings.simplefilter("ignore")
        try:
            image: Image.Image = Image.open(file, formats=sorted(set(Image.OPEN) - _NOT_PHOTOS))
            _refuse_large(image)
            _refuse_animated(image)
            if quick:
                image.draft("RGB", (64, 64))
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError:
            raise _Unusable(f"more than {MAX_MEGAPIXELS} megapixels") from None
        except Image.UnidentifiedImageError:
            raise _Unusable("broken, or not a picture") from None
        except _DECODER_ERRORS as error:
            raise _Unusable(f"broken: {_printable(error)}") from None


def _refuse_large(image: Image.Image) -> None:
    if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
        raise _Unusable(f"{image.width}x{image.height}, more than {MAX_MEGAPIXELS} megapixels")


def _refuse_animated(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if image.format in _ANIMATIONS and frames > 1:
        raise _Unusable(f"animated, {frames} frames")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_to_rgb(image)
    if image.mode == "LAB":
        raise _Unusable("LAB colours cannot be read: convert it to JPEG")
    if image.has_transparency_data:
        straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        white = Image.new("RGBA", straight.size, "white")
        return Image.alpha_composite(white, straight).convert("RGB")
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


def _crop(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _pad(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _find_captions(folder: Path, names: list[str], photos: list[Path]) -> dict[Path, str]:
    files = {Path(name).stem: folder / name for name in names if name.lower().endswith(".txt")}
    shared = Counter(path.stem for path in photos)
    captions = {}
    for path in photos:
        file = files.get(path.stem)
        if file is None or (os.path.exists(file) and not os.path.isfile(file)):
            continue
        if shared[path.stem] > 1:
            same = _some([_printable(other.name) for other in photos if other.stem == path.stem])
            raise UserError(f"{_printable(file)} would be the caption of {same}; give each photo a stem of its own")
        captions[path] = _read_caption(file)
    return captions


def _read_caption(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"the caption {_printable(file)} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read the caption {_printable(file)}: {_reason(error)}") from None
    if "\0" in text:
        raise UserError(f"the caption {_printable(file)} is not UTF-8 text; save it as UTF-8")
    if not text:
        raise UserError(f"the caption {_printable(file)} is empty; write one, or remove the file to use the templates")
    return text.splitlines()[0].strip()


def _reason(error: Exception) -> str:
    return _printable(getattr(error, "strerror", None) or error).lower()


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _printable(value: object) -> str:
    """One line that any terminal takes: a file name may hold line breaks and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
