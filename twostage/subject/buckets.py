"""Aspect-ratio buckets: sizes about as large as the square of the resolution, in the shapes that photos have."""

from __future__ import annotations

import math


def bucket_size(photo: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """The bucket that a photo is scaled and cropped to.

    Buckets have at most as many pixels as the square, so that none needs more memory, and sides of half to twice the
    resolution; of these the one nearest in aspect ratio, measured in its logarithm, and of equally near ones the
    largest.

    Args:
        photo: width and height in pixels.
        resolution: side of the square, in pixels; a multiple of `multiple`.
        multiple: of which both sides are.

    Returns:
        width and height in pixels.
    """
    most = resolution // multiple
    shapes = []
    for side in range(max(1, math.ceil(most / 2)), 2 * most + 1):
        other = most * most // side
        if other >= math.ceil(most / 2):
            shapes += [(side, other), (other, side)]
    aspect = math.log(photo[0] / photo[1])
    # Compared in units no float rounding reaches, so that a portrait's bucket is the landscape's, turned.
    wide, high = min(
        shapes, key=lambda shape: (round(abs(math.log(shape[0] / shape[1]) - aspect), 9), -shape[0] * shape[1], shape)
    )
    return wide * multiple, high * multiple


def corner_of(photo: tuple[int, int], target: tuple[int, int], fit: str) -> tuple[int, int]:
    """Left and top of what is cut out of the middle of a photo, in pixels of the photo as it is scaled.

    Args:
        photo: width and height in pixels.
        target: width and height of what training sees.
        fit: as in the recipe; a padded photo is not cut.
    """
    if fit == "pad":
        return 0, 0
    scale = max(target[0] / photo[0], target[1] / photo[1])
    left, top = (round((side * scale - kept) / 2) for side, kept in zip(photo, target, strict=True))
    return left, top
