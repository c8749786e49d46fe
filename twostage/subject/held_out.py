"""Photos that training must not see, and that evaluation measures against."""

from __future__ import annotations

import os
from collections.abc import Sequence

from twostage.errors import UserError
from twostage.recipe import Data
from twostage.subject.copies import Thumbnail, find_copy
from twostage.subject.photos import Photo, find_photo, find_photos, open_photo
from twostage.subject.pictures import Unusable, printable
from twostage.weights import refuse_archive


def find_held_out(data: Data) -> list[Photo]:
    """The photos that `data.held_out` names, each once, in its order; those of a folder by name.

    Raises:
        UserError: one is missing, or is no photo; see `find_photos`.
    """
    found: dict[str, Photo] = {}
    for path in data.held_out:
        if not os.path.exists(path):
            raise UserError(
                f"the held-out photo {printable(path)} does not exist; give a photo of the subject, or a folder of them"
            )
        refuse_archive(path, "the photo, or the folder with the photos")
        try:
            photos = find_photos(path) if os.path.isdir(path) else [find_photo(path)]
        except Unusable as reason:
            raise UserError(
                f"the held-out photo {printable(path)} cannot be used: {reason}; give a photo of the subject, or a "
                "folder of them"
            ) from None
        for photo in photos:
            found.setdefault(photo.sha256, photo)
    return list(found.values())


def leaks(held_out: Sequence[Photo], photos: Sequence[Photo]) -> list[str]:
    """A note for each held-out photo that training sees a copy of; see `find_copy`.

    Args:
        held_out: from `find_held_out`.
        photos: that training sees.

    Raises:
        UserError: one is gone or has been damaged since it was found.
    """
    if not held_out:
        return []
    thumbnails = [(photo, Thumbnail(open_photo(photo))) for photo in photos]
    notes = []
    for held in held_out:
        own = Thumbnail(open_photo(held))
        for photo, thumbnail in thumbnails:
            if copy := find_copy(own, thumbnail):
                notes.append(
                    f"the held-out photo {printable(held.path)} leaks: training sees {printable(photo.path)}, the same "
                    f"picture {copy}; figures against it flatter. Hold out both"
                )
                break
    return notes
