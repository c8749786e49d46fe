"""Styles: a finished picture made into an oil painting or a pencil sketch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Floats = npt.NDArray[np.float32]


@lru_cache(maxsize=8)
def _strokes(side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """Where each pixel takes its paint from (rows, columns) and how thick it lies, (side, side)."""
    y, x = np.mgrid[0:side, 0:side] * (64.0 / side)
    # Short arcs laid in two crossing directions, as a loaded brush leaves them.
    along, across = x * 0.8 + y * 0.6, y * 0.8 - x * 0.6
    lane = np.floor(across / 3.2)
    push = np.sin(along * 0.6 + lane * 2.1) * 0.8
    thick = np.sin(across / 3.2 * 2 * np.pi) * 0.6 + np.sin(along * 0.5 + lane * 1.7) * 0.6
    unit = side / 64.0
    rows = np.clip(np.round((y + push * 0.6) * unit), 0, side - 1).astype(np.intp)
    columns = np.clip(np.round((x + push * 0.8) * unit), 0, side - 1).astype(np.intp)
    return rows, columns, thick.astype(np.float32)


def painting(image: Image.Image, side: int) -> Image.Image:
    """Oil on canvas in a gilt frame: RGB of any size in, (side, side) RGB out."""
    # Painted at twice the size: strokes a pixel wide would fray every edge.
    big = image.resize((side * 2, side * 2), Image.Resampling.BOX)
    rows, columns, thick = _strokes(side * 2)
    a = np.asarray(big.filter(ImageFilter.MedianFilter(5)), dtype=np.float32)[rows, columns]
    grey = a.mean(axis=2, keepdims=True)
    a = grey + (a - grey) * 1.22
    a = np.round(a / 40) * 40
    # A warm varnish over all of it, and light caught by the ridges of paint.
    a = a * np.array([1.0, 0.93, 0.76], np.float32) + np.array([14, 8, 0], np.float32)
    a += thick[:, :, None] * 13
    done = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
    done = done.resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(done)
    unit = side / 64
    rings = ((0.0, 1.2, (96, 60, 22)), (1.2, 3.2, (206, 156, 62)), (3.2, 4.2, (120, 78, 30)))
    for start, end, colour in rings:
        a0, a1 = round(start * unit), round(end * unit)
        for i in range(a0, a1):
            draw.rectangle((i, i, side - 1 - i, side - 1 - i), outline=colour)
    glow = round(1.2 * unit)
    draw.line((glow, glow, side - 1 - glow, glow), fill=(244, 210, 120), width=max(round(unit), 1))
    draw.line((glow, glow, glow, side - 1 - glow), fill=(244, 210, 120), width=max(round(unit), 1))
    return done


@lru_cache(maxsize=8)
def _hatching(side: int) -> tuple[Floats, Floats]:
    """Two fields of diagonal pencil lines, 0..1, each (side, side)."""
    y, x = np.mgrid[0:side, 0:side] * (64.0 / side)
    one = np.clip(np.cos((x + y) * 2 * np.pi / 4.4) * 1.6, 0, 1)
    two = np.clip(np.cos((x - y) * 2 * np.pi / 4.4) * 1.6, 0, 1)
    return one.astype(np.float32), two.astype(np.float32)


def sketch(image: Image.Image, side: int) -> Image.Image:
    """Pencil on paper: RGB of any size in, (side, side) RGB in greys out."""
    big = image.resize((side * 2, side * 2), Image.Resampling.BOX)
    a = np.asarray(big, dtype=np.float32) / 255
    edge = np.zeros(a.shape[:2], np.float32)
    edge[:, 1:] += np.abs(a[:, 1:] - a[:, :-1]).max(axis=2)
    edge[1:] += np.abs(a[1:] - a[:-1]).max(axis=2)
    line = np.clip(edge * 3.6 - 0.22, 0, 1)
    tone = a @ np.array([0.3, 0.59, 0.11], np.float32)
    one, two = _hatching(side * 2)
    shade = np.clip((0.6 - tone) * 1.6, 0, 0.5) * one + np.clip((0.3 - tone) * 2.2, 0, 0.45) * two
    paper = 0.955 - 0.03 * (1 - tone)
    value = np.clip(paper * (1 - shade * 0.75) * (1 - line * 0.78), 0.1, 1)
    rgb = value[:, :, None] * np.array([255, 252, 244], np.float32)
    done = Image.fromarray(rgb.astype(np.uint8))
    return done.resize((side, side), Image.Resampling.BILINEAR)
