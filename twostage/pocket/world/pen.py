"""The pen: fills outlines on a picture, flat or with soft shading.

A pen maps the units it draws in (64 to a picture side) to pixels, through one affine
transform, so that a tilted subject is drawn tilted instead of being resampled.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .shapes import Points

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]

SHADE: RGB = (24, 14, 56)  # shadows lean to violet: kinder to the colours than plain black
WHITE: RGB = (255, 255, 255)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """The colour a part t (0..1) of the way from a to b."""
    return (
        int(a[0] + (b[0] - a[0]) * t),
        int(a[1] + (b[1] - a[1]) * t),
        int(a[2] + (b[2] - a[2]) * t),
    )


@lru_cache(maxsize=64)
def _ball(strength: int, bright: bool) -> Image.Image:
    """Shading of a rounded thing lit from the upper left: (48, 48) alpha, up to strength/100."""
    y, x = np.mgrid[0:48, 0:48] / 47.0
    far = np.hypot((x - 0.30) * 1.0, (y - 0.22) * 0.92)
    alpha = np.clip(0.42 - far, 0, 1) / 0.42 if bright else np.clip(far - 0.40, 0, 1) / 0.55
    alpha = np.clip(alpha, 0, 1) ** 1.1 * strength / 100
    return Image.fromarray((alpha * 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _spot() -> Image.Image:
    """A soft round spot: (64, 64) alpha, 255 in the middle."""
    y, x = np.mgrid[0:64, 0:64] / 31.5 - 1
    near = np.clip((1 - np.hypot(x, y)) * 1.25, 0, 1)
    alpha = near * near * (3 - 2 * near)
    return Image.fromarray((np.clip(alpha, 0, 1) * 255).astype(np.uint8))


@lru_cache(maxsize=128)
def _fade(alpha: int) -> list[int]:
    return [v * alpha // 255 for v in range(256)]


class Pen:
    """Draws on `image` (RGB) at `scale` pixels a unit, through `matrix` (2, 3), units to units."""

    def __init__(
        self,
        image: Image.Image,
        scale: float,
        matrix: npt.NDArray[np.float64] | None = None,
        origin: tuple[int, int] = (0, 0),
    ) -> None:
        self.image = image
        self.scale = scale
        self.matrix = np.array([[1.0, 0, 0], [0, 1.0, 0]]) if matrix is None else matrix
        self.origin = origin
        self._draw = ImageDraw.Draw(image)
        self._turn = self.matrix[:, :2].T * scale
        self._shift = self.matrix[:, 2] * scale - np.asarray(origin, dtype=np.float64)

    def pixels(self, points: Points) -> Points:
        """Where `points` (n, 2), in units, fall on the image, in pixels."""
        return points @ self._turn + self._shift

    def fill(self, points: Points, colour: RGB, alpha: float = 1.0) -> None:
        """Fill an outline, flat; alpha 0..1."""
        if alpha >= 1:
            self._draw.polygon(self.pixels(points).ravel().tolist(), fill=colour)
            return
        found = self.mask(points)
        if found is not None:
            mask, bounds = found
            self.image.paste(colour, bounds, mask.point(_fade(int(alpha * 255))))

    def mask(self, *outlines: Points) -> tuple[Image.Image, Box] | None:
        """Coverage of the outlines together: a cropped L image and its box, None if outside."""
        placed = [self.pixels(points) for points in outlines]
        low = np.min([p.min(axis=0) for p in placed], axis=0)
        high = np.max([p.max(axis=0) for p in placed], axis=0)
        x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
        x1 = min(int(high[0]) + 2, self.image.width)
        y1 = min(int(high[1]) + 2, self.image.height)
        if x1 <= x0 or y1 <= y0:
            return None
        mask = Image.new("L", (x1 - x0, y1 - y0))
        draw = ImageDraw.Draw(mask)
        for p in placed:
            draw.polygon((p - (x0, y0)).ravel().tolist(), fill=255)
        return mask, (x0, y0, x1, y1)

    def layer(self, bounds: Box, colour: RGB) -> Pen:
        """A pen like this one on a fresh image covering only the pixel box `bounds`."""
        image = Image.new("RGB", (bounds[2] - bounds[0], bounds[3] - bounds[1]), colour)
        origin = (self.origin[0] + bounds[0], self.origin[1] + bounds[1])
        return Pen(image, self.scale, self.matrix, origin)

    def shade(self, colour: RGB, dark: float, light: float) -> None:
        """Shade the whole image as one rounded thing of a colour; strengths 0..1."""
        # The dark side keeps some of its own colour: an orange in plain shadow would be brown.
        deep = mix(SHADE, colour, 0.3)
        for strength, bright, tone in ((dark, False, deep), (light, True, WHITE)):
            if strength > 0:
                alpha = _ball(round(strength * 100), bright).resize(self.image.size, Image.Resampling.BILINEAR)
                self.image.paste(tone, (0, 0), alpha)

    def solid(self, points: Points, colour: RGB, dark: float = 0.38, light: float = 0.16) -> None:
        """Fill an outline with a colour shaded as one rounded thing."""
        found = self.mask(points)
        if found is not None:
            mask, bounds = found
            layer = self.layer(bounds, colour)
            layer.shade(colour, dark, light)
            self.image.paste(layer.image, bounds, mask)

    def spot(self, cx: float, cy: float, rx: float, ry: float, colour: RGB, alpha: float) -> None:
        """A soft-edged ellipse, upright whatever the pen's turn; alpha 0..1 in its middle."""
        centre = self.pixels(np.array([[cx, cy]]))[0]
        w, h = max(int(2 * rx * self.scale), 1), max(int(2 * ry * self.scale), 1)
        soft = _spot().resize((w, h), Image.Resampling.BILINEAR).point(_fade(int(alpha * 255)))
        corner = (int(centre[0] - w / 2), int(centre[1] - h / 2))
        self.image.paste(colour, (corner[0], corner[1], corner[0] + w, corner[1] + h), soft)

    def wash(self, y0: float, y1: float, top: RGB, bottom: RGB) -> None:
        """A vertical gradient over the full width, between two heights (units, not turned)."""
        a, b = int(y0 * self.scale), int(y1 * self.scale)
        ramp = np.linspace(top, bottom, max(b - a, 1))[:, None, :].astype(np.uint8)
        strip = Image.fromarray(ramp).resize((self.image.width, max(b - a, 1)))
        self.image.paste(strip, (0, a))

    def clipped(self, outline: Points, inside: list[tuple[Points, RGB]], base: RGB) -> None:
        """Fill `outline` with `base` and, cut off at its edge, the shapes `inside`."""
        found = self.mask(outline)
        if found is None:
            return
        mask, bounds = found
        layer = self.layer(bounds, base)
        for points, colour in inside:
            layer.fill(points, colour)
        self.image.paste(layer.image, bounds, mask)
