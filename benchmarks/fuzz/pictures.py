"""Pictures of odd kinds, and such that lie about their size."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from random import Random
from typing import Any

from PIL import Image


def odd_picture(rng: Random, data: bytes) -> bytes | None:
    """The picture as another program might have written it; None where it is none."""
    try:
        with Image.open(BytesIO(data)) as opened:
            picture = opened.copy()
    except (OSError, SyntaxError, ValueError):
        return None
    return rng.choice((_saved_oddly, _saved_oddly, _other_size))(rng, picture)


def _saved_oddly(rng: Random, picture: Image.Image) -> bytes:
    """Another format, mode, orientation, or size."""
    picture = picture.convert("RGBA").resize(rng.choice((picture.size, (1, 1), (1, 500), (3000, 2), (17, 40))))
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 1, 3, 6, 8, 9, 65535))
    kind, modes = rng.choice(
        (
            ("PNG", ("1", "L", "LA", "P", "RGBA", "I;16")),
            ("JPEG", ("L", "CMYK", "RGB")),
            ("WEBP", ("RGB", "RGBA")),
            ("TIFF", ("1", "L", "F", "CMYK", "I;16", "P")),
            ("GIF", ("P", "L")),
            ("BMP", ("RGB", "1")),
        )
    )
    shown = _in_mode(picture, rng.choice(modes))
    options: dict[str, Any] = {}
    if kind in ("PNG", "WEBP", "GIF", "TIFF") and rng.random() < 0.2:
        options = {"save_all": True, "append_images": [shown, shown.transpose(Image.Transpose.ROTATE_180)]}
    out = BytesIO()
    shown.save(out, format=kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}), **options)
    return out.getvalue()


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Of RGBA, what PIL converts by way of others."""
    if mode == "RGBA":
        return picture
    grey = picture.convert("L")
    if mode == "I;16":
        return grey.convert("I").convert("I;16")
    return grey.convert("F") if mode == "F" else picture.convert("RGB").convert(mode)


def _other_size(rng: Random, picture: Image.Image) -> bytes:
    """A PNG whose header lies about its size, with a checksum that is right."""
    out = BytesIO()
    picture.convert("RGB").save(out, format="PNG")
    data = bytearray(out.getvalue())
    sizes = rng.choice(
        ((0, 0), (2**31 - 1, 2**31 - 1), (9_000, 9_000), (100_000, 1), (picture.width, picture.height + 9))
    )
    data[16:24] = struct.pack(">II", *sizes)
    if rng.random() < 0.3:
        data[24:29] = rng.randbytes(5)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)
