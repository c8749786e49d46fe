"""Files and folders that are there whole or not at all, even after a power cut, and a full disk told in one line."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from twostage.errors import UserError

UNFINISHED = ".writing-"
_BEFORE = "over-"  # What is being replaced, until the new one is there.
REMEDY = "make room or choose another folder. What was saved before is whole"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What file systems answer that cannot flush a folder.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}


@contextmanager
def whole_file(final: Path, needs: int = 0, *, lasting: bool = True, remedy: str = REMEDY) -> Iterator[Path]:
    """A temporary name to write a file to; afterwards it is `final`, in place of what was there.

    Args:
        final: the file.
        needs: bytes it takes, if that is known.
        lasting: whether a power cut must leave it whole; not for what is checked when it is read and can be made anew.
        remedy: what to do where it cannot be written.

    Raises:
        UserError: it cannot be written; nothing of it is left, and what was there is.
    """
    with writing(final, needs, remedy):
        final.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two processes may draw the same picture for the cache.
        temporary = final.with_name(f"{UNFINISHED}{secrets.token_hex(4)}-{final.name}")
        try:
            yield temporary
            if lasting:
                flush(temporary)
            os.replace(temporary, final)
            if lasting:
                _flush_folder(final.parent)
        finally:
            with suppress(OSError):  # The folder may be gone, and the error that says so counts.
                temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(final: Path, needs: int = 0) -> Iterator[Path]:
    """A temporary folder to write into; afterwards it is `final`, in place of what was there.

    Args:
        final: the folder.
        needs: bytes it takes, if that is known.

    Raises:
        UserError: it cannot be written; nothing of it is left, and what was there is.
    """
    with writing(final, needs):
        temporary, before = (final.with_name(f"{UNFINISHED}{word}{final.name}") for word in ("", _BEFORE))
        for left in (temporary, before):
            remove_unfinished(left)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for path in temporary.rglob("*"):
                _flush_folder(path) if path.is_dir() else flush(path)
            _flush_folder(temporary)
            _put_in_place(temporary, final, before)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(path: Path, needs: int = 0, remedy: str = REMEDY) -> Iterator[None]:
    """Tell a full disk, a missing permission and their like in one line.

    Args:
        path: what is written.
        needs: bytes it takes, if that is known.
        remedy: what to do where it cannot be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {_reason(error)}{_room(error, path, needs)}; {remedy}") from error


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link and not what it leads to; whatever of it cannot be, stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_unfinished(left: Path) -> None:
    """Remove what a kill left of `whole_file` or `whole_folder`; what one was to replace goes back to its place.

    Raises:
        OSError: it cannot be put back.
    """
    final = left.with_name(left.name.removeprefix(UNFINISHED + _BEFORE))
    if left.name.startswith(UNFINISHED + _BEFORE) and os.path.lexists(left) and not os.path.lexists(final):
        os.replace(left, final)
    else:
        remove(left)


def remove_folder(folder: Path) -> None:
    """Remove a folder of which a kill leaves all or nothing under its name.

    Raises:
        OSError: it cannot be removed.
    """
    removing = folder.with_name(f"{UNFINISHED}removing-{folder.name}")
    remove(removing)
    os.replace(folder, removing)
    shutil.rmtree(removing, ignore_errors=True)  # A network's file system may keep what is still open there.


def flush(file: Path) -> None:
    """Have a file's bytes on the disk, so that no name is given to what a power cut would empty.

    Raises:
        OSError: they cannot be written there.
    """
    handle = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int | None:
    """What is free where a path is, or would be; None where that cannot be told."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            usage = shutil.disk_usage(place)
            return usage.free if usage.total else None  # Some network file systems answer nothing but 0.
    return None


def _put_in_place(temporary: Path, final: Path, before: Path) -> None:
    if os.path.lexists(final):
        os.replace(final, before)  # A folder that holds something cannot be replaced at once.
    try:
        os.replace(temporary, final)
    except OSError:
        if os.path.lexists(before):
            os.replace(before, final)
        raise
    _flush_folder(final.parent)
    remove(before)


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where that can be asked for."""
    if os.name == "nt":
        return
    try:
        flush(folder)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def system_error(error: Exception) -> int | None:
    """The system's number of an error; safetensors reports what the system said inside its own message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _reason(error: OSError | SafetensorError) -> str:
    number = system_error(error)
    return os.strerror(number) if number else str(error)


def _room(error: OSError | SafetensorError, path: Path, needs: int) -> str:
    """How many bytes it takes, how many are free, and how many of them are missing."""
    if system_error(error) not in _FULL:
        return ""
    free, told = free_bytes(path), [f"it takes {needs:,} bytes"] if needs else []
    if free is not None:
        told.append(f"{free:,} bytes are free")
        if needs:
            told.append(f"{needs - free:,} are missing" if needs > free else "a quota or another limit keeps it out")
    return f" ({', '.join(told)})" if told else ""
