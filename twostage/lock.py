"""One process at a time in a folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from twostage.errors import UserError


class Lock:
    """Of a folder that is there, by a file in it; a process that ends in whatever way lets go of it.

    Args:
        folder: whose.
        what: goes on in it, for the message: "the comparison in runs/compare".
    """

    NAME = ".lock"

    def __init__(self, folder: Path, what: str) -> None:
        self._file, self._what = folder / self.NAME, what
        self._lock = FileLock(self._file, blocking=False)

    def take(self) -> None:
        """Keep other processes out until `release`.

        Raises:
            UserError: one is in there; or the file is a link, which would be followed.
            OSError: the folder cannot be written.
        """
        if self._file.is_symlink():
            raise UserError(f"{self._file} is a link, and should be a file; remove it")
        try:
            with suppress(NotImplementedError):  # A network's file system may know no locks.
                self._lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is at work on {self._what}; wait until it ends, or choose another output"
            ) from None

    def release(self) -> None:
        """Let others in, if this process was; leaves no file."""
        if self._lock.is_locked:
            with suppress(OSError):  # Windows removes no file that is open.
                self._file.unlink(missing_ok=True)  # First, as afterwards it may be another's.
            self._lock.release()
