"""Where a comparison lies: a folder, or an address that fsspec knows (s3://bucket/name)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.errors import UserError
from twostage.lock import Lock
from twostage.reading import parse_json


@dataclass(frozen=True)
class Place:
    """Files of a comparison by their names inside it.

    Behind an address, a folder is worked on in a local copy, which goes back when it is done: `done` last, so that it
    says of the rest that it is whole.

    Attributes:
        root: full path of the folder, or the address.
    """

    root: str

    @property
    def path(self) -> Path | None:
        """The folder; None where it is an address."""
        return None if "://" in self.root else Path(self.root)

    def join(self, name: str) -> str:
        """Path or address of something inside."""
        return f"{self.root.rstrip('/')}/{name}"

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name."""
        if self.path:
            return (self.path / name).is_file()
        system, root = _open(self.root)
        with _reaching(self.root):
            return bool(system.isfile(f"{root}/{name}"))

    def read(self, name: str) -> str | None:
        """Text of a file; None where there is none."""
        content = self._bytes(name)
        with _reaching(self.root):
            return None if content is None else content.decode("utf-8")

    def facts(self, name: str) -> dict[str, Any]:
        """What a file of JSON holds; nothing where there is none, or it is damaged."""
        try:
            found = parse_json(self._bytes(name) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _bytes(self, name: str) -> bytes | None:
        if not self.holds(name):
            return None
        with _reaching(self.root):
            if self.path:
                return (self.path / name).read_bytes()
            system, root = _open(self.root)
            return bytes(system.cat_file(f"{root}/{name}"))

    def write(self, name: str, text: str) -> None:
        """Write a file; it is there whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        with _reaching(self.root):
            if self.path is None:
                system, root = _open(self.root)
                system.pipe_file(_made(system, f"{root}/{name}"), text.encode())
                return
            file = self.path / name
            temporary = file.with_name(f".writing-{os.getpid()}-{file.name}")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(text, encoding="utf-8")
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from carrying out the same comparison meanwhile; behind an address, nothing does.

        Raises:
            UserError: another one does it now, or the folder cannot be written.
        """
        if self.path is None:
            yield
            return
        with _reaching(self.root):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = Lock(self.path, f"the comparison in {self.root}")
            lock.take()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def folder(self, name: str, done: str | None = None) -> Iterator[Path]:
        """A folder inside to work on; behind an address, a copy that goes back unless something goes wrong.

        Args:
            name: of the folder.
            done: file in it that goes last; None to read alone.

        Raises:
            UserError: the address cannot be reached, read or written.
        """
        if self.path:
            yield self.path / name
            return
        system, root = _open(self.root)
        remote = f"{root}/{name}"
        with tempfile.TemporaryDirectory(prefix="twostage-") as temporary:
            local = Path(temporary) / Path(name).name
            with _reaching(self.root):
                if system.isdir(remote):
                    _copy(system, remote, local)
            yield local
            if done is not None and local.is_dir():
                with _reaching(self.root):
                    files = sorted(file for file in local.rglob("*") if file.is_file())
                    for file in sorted(files, key=lambda file: file == local / done):
                        system.put_file(str(file), _made(system, f"{remote}/{file.relative_to(local).as_posix()}"))

    @contextmanager
    def whole(self, wanted: str) -> Iterator[Path]:
        """A local folder with everything inside whose path has `wanted` in it, or ends so, to read and to add to.

        What is added to its top goes back.
        """
        if self.path:
            yield self.path
            return
        system, root = _open(self.root)
        with tempfile.TemporaryDirectory(prefix="twostage-") as temporary:
            local = Path(temporary)
            with _reaching(self.root):
                for file in system.find(root):
                    inside = str(file).removeprefix(root).lstrip("/")
                    if wanted in inside:
                        (local / inside).parent.mkdir(parents=True, exist_ok=True)
                        system.get_file(file, str(local / inside))
            yield local
            with _reaching(self.root):
                for made in local.iterdir():
                    if made.is_file():
                        system.put_file(str(made), _made(system, f"{root}/{made.name}"))


def find_place(output: str) -> Place:
    """The place that a user named, checked as far as it can be without writing.

    Raises:
        UserError: it is a file, or an address that nothing here can reach.
    """
    if output.startswith("file://"):
        output = output.removeprefix("file://")
    if "://" in output:
        if output.startswith("memory://"):
            raise UserError(f"the output {output} is one process's memory, which workers cannot share; name a folder")
        _open(output)
        return Place(output.rstrip("/"))
    if os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"the output {output} is a file; choose a folder")
    return Place(os.path.abspath(output))


def _open(address: str) -> tuple[Any, str]:
    """The file system behind an address, and the path in it."""
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"the output {address} cannot be reached: {error}") from error
    return system, str(root).rstrip("/")


def _copy(system: Any, remote: str, local: Path) -> None:
    for file in system.find(remote):
        inside = local / str(file).removeprefix(remote).lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(file, str(inside))


def _made(system: Any, path: str) -> str:
    system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    return path


@contextmanager
def _reaching(root: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot read or write in {root}: {reason}; put that right, or choose another output. What is finished "
            "there stays usable"
        ) from error


def remove(folder: Path) -> None:
    """Forget what a kill has left half made."""
    shutil.rmtree(folder, ignore_errors=True)
