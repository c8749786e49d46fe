"""The cache: what was computed once, can be computed again, and may be deleted at any time.

$TWOSTAGE_CACHE, else $XDG_CACHE_HOME/twostage, else ~/.cache/twostage.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.errors import UserError
from twostage.writing import whole_file

_REMEDY = "make room, or set TWOSTAGE_CACHE to another folder. What the cache holds already stays usable"
_NAME = re.compile("[0-9a-f]{32}")  # Of a shelf.


def cache_folder() -> Path:
    """Where the cache is, whether or not it is there yet."""
    if own := os.environ.get("TWOSTAGE_CACHE"):
        return Path(os.path.expanduser(own))
    # By the specification, a relative XDG_CACHE_HOME counts as none.
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return Path(shared if os.path.isabs(shared) else os.path.expanduser("~/.cache")) / "twostage"


class Shelf:
    """A folder of the cache with files, numbered or named, that depend on the same facts.

    The folder's name is a hash of the facts: other facts, another folder, so nothing in it is ever stale.

    Args:
        kind: of files; a folder of the cache.
        suffix: of every file's name.
        facts: all that the files depend on but their number or name; JSON.

    Attributes:
        path: the folder.
    """

    def __init__(self, kind: str, suffix: str, facts: dict[str, Any]) -> None:
        self._facts = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
        self.path = cache_folder() / kind / hashlib.sha256(self._facts.encode()).hexdigest()[:32]
        self._suffix = suffix

    def file(self, key: int | str) -> Path:
        """The file of that number or name, whether or not it is there."""
        return self.path / f"{key if isinstance(key, str) else format(key, '06d')}{self._suffix}"

    def missing(self, count: int, whole: Callable[[Path], bool]) -> list[int]:
        """Which of the first `count` files are not there, or no files, or not `whole`."""
        files = map(self.file, range(count))
        return [index for index, file in enumerate(files) if not (os.path.isfile(file) and whole(file))]

    def put(self, key: int | str, data: bytes) -> None:
        """Write a file; it is there whole or not at all, whoever else writes it at the same time.

        Raises:
            UserError: it cannot be written.
        """
        if not (self.path / "facts.json").is_file():
            self._write(self.path / "facts.json", self._facts.encode())  # For people: nothing reads it.
        self._write(self.file(key), data)

    def _write(self, path: Path, data: bytes) -> None:
        with whole_file(path, len(data), lasting=False, remedy=_REMEDY) as temporary:
            temporary.write_bytes(data)


@dataclass(frozen=True)
class Kept:
    """What the cache holds of one kind.

    Attributes:
        kind: latents, class-images ...
        shelves: sets of files that depend on the same facts.
        files: in them.
        bytes: that they take.
    """

    kind: str
    shelves: int
    files: int
    bytes: int


def kept() -> list[Kept]:
    """What the cache holds, by kind; what is no shelf of ours is not counted."""
    return [_count(kind, shelves) for kind, shelves in _shelves().items()]


def clear(kinds: Collection[str] = ()) -> list[Kept]:
    """Remove all shelves of some kinds, or of every one, and nothing else that may lie beside them.

    Args:
        kinds: of `kept`; all of them when empty.

    Returns:
        What was removed.

    Raises:
        UserError: there is nothing of a kind, and nothing was removed; or it cannot be removed.
    """
    there = _shelves()
    if unknown := [kind for kind in kinds if kind not in there]:
        raise UserError(
            f"the cache in {cache_folder()} has nothing of the kind {unknown[0]!r}; it has {', '.join(there) or 'none'}"
        )
    removed = [_count(kind, shelves) for kind, shelves in there.items() if kind in kinds or not kinds]
    for one in removed:
        for shelf in there[one.kind]:
            try:
                shutil.rmtree(shelf)
            except OSError as error:
                raise UserError(f"cannot remove {shelf}: {error.strerror}") from error
    return removed


def _count(kind: str, shelves: Sequence[Path]) -> Kept:
    files = total = 0
    # Some kinds have so many files that a shelf keeps them in folders.
    for place in (place for shelf in shelves for place in os.walk(shelf)):
        for name in place[2]:
            with suppress(FileNotFoundError):  # Another process may be clearing it.
                found = os.lstat(os.path.join(place[0], name))
                if stat.S_ISREG(found.st_mode):
                    files, total = files + 1, total + found.st_size
    return Kept(kind, len(shelves), files, total)


def _shelves() -> dict[str, list[Path]]:
    """By kind. A shelf says its facts, so that a cache in a wrong place is not taken for all that lies there."""
    found: dict[str, list[Path]] = {}
    for facts in sorted(cache_folder().glob("*/*/facts.json")):
        shelf = facts.parent
        if _NAME.fullmatch(shelf.name) and not shelf.is_symlink() and not shelf.parent.is_symlink():
            found.setdefault(shelf.parent.name, []).append(shelf)
    return found
