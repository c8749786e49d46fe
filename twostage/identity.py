"""What a run was begun with, so that it goes on with nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twostage.errors import UserError
from twostage.families import Base
from twostage.run_folder import RunFolder
from twostage.subject.photos import Photo


def identity(
    base: Base,
    processes: int,
    photos: Sequence[Photo],
    held_out: Sequence[Photo],
    class_images: Sequence[Photo],
) -> dict[str, Any]:
    """Facts of a run, for run.json."""
    return {
        "base": {"name": base.source, "sha256": base.content_hash},
        "processes": processes,
        "photos": [_of(photo) for photo in photos],
        "held_out": [_of(photo) for photo in held_out],
        "class_images": [_of(picture) for picture in class_images],
    }


def check_identity(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Make sure that a run goes on with what it was begun with.

    Raises:
        UserError: base, photos or anything else of `facts` are others.
    """
    for name, value in facts.items():
        # A run begun before there were held-out photos has no word of them.
        if folder.facts.get(name, []) != value:
            raise UserError(
                f"the {name.replace('held_out', 'held-out photos')} changed since {folder.path} was begun; "
                "restore it, or choose a new output"
            )


def _of(photo: Photo) -> dict[str, Any]:
    facts = {"name": photo.path.name, "sha256": photo.sha256, "caption": photo.caption}
    repeats = {"repeats": photo.repeats} if photo.repeats != 1 else {}
    return facts | repeats | ({"mask_sha256": photo.mask.sha256} if photo.mask else {})
