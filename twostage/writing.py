"""Files and folders that are there whole or not at all, and a full disk told in one line."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from twostage.errors import UserError

UNFINISHED = ".writing-"


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """A temporary name to write a file to; afterwards it is `final`, in place of what was there.

    Raises:
        UserError: it cannot be written; nothing of it is left.
    """
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes may draw the same picture for the cache.
        temporary = final.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{final.name}")
        try:
            yield temporary
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to write into; afterwards it is `final`, in place of what was there.

    Raises:
        UserError: it cannot be written; nothing of it is left.
    """
    with writing(final):
        temporary = final.with_name(UNFINISHED + final.name)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell a full disk, a missing permission and their like in one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports what the system said inside its own message.
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write {path}: {reason}; make room or choose another folder. What was saved before is whole"
        ) from error
