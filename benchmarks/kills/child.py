"""Work in a process of its own, that is killed from without at a moment, or dies at one of its file operations."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twostage.display import Display, Update
from twostage.errors import UserError
from twostage.writing import UNFINISHED

# What changes files, of what Python tells of itself. What safetensors writes it does not: there, moments must hit.
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
_NOTE = 512
# Exit codes of work that was refused, and that stopped when it was asked to.
_REFUSED, _STOPPED = 2, 130
_OUTLIVED = 5.0  # Times as long as unbroken work takes; then it hangs.


@dataclass(frozen=True)
class Operation:
    """A change of a file, just before it is made.

    Attributes:
        what: open, rename, remove ...
        kind: of what it changes: "latents", "checkpoint", "pruning" ...
        file: that it changes, relative to the place.
    """

    what: str
    kind: str
    file: str


@dataclass(frozen=True)
class Kill:
    """When to kill: at the file operation of that number, counted from 1, or else after so many seconds.

    With `asks`, it is asked to stop, by SIGTERM, in place of being killed.
    """

    operation: int = 0
    seconds: float = 0.0
    asks: bool = False


@dataclass(frozen=True)
class Fault:
    """What of the changes of files fails, below Python; see faults.c.

    Attributes:
        number: of the change, counted from 1; 0 for none.
        error: the system's number for why.
        stays: whether all that come after it fail too.
    """

    number: int = 0
    error: int = 0
    stays: bool = False


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        killed: whether by the kill it was meant to die of; else it had done its work, or refused it.
        where: what it did last.
        seconds: it lived.
        operations: that it made, if it was asked to note them.
        refused: what the user was told, where it ended so.
        changes: of files, counted below Python, if there was a fault.
        answered: seconds from when it was asked to stop to when it had.
    """

    killed: bool
    where: str
    seconds: float
    operations: Sequence[Operation] = ()
    refused: str = ""
    changes: int = 0
    answered: float = 0.0


class Failed(Exception):
    """The work itself failed, or hung; the message says how."""


class _Telling(Display):
    """Notes where it is, so that it is known after a kill."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        def update(done: int, **numbers: float) -> None:
            self._note(f"{label} {done}")

        self._note(f"{label} {done}")
        yield update


def run(
    work: Callable[[Display], object],
    place: Path,
    kill: Kill | None,
    usual: float = 120.0,
    fault: Fault | None = None,
) -> Ended:
    """Do some work in a forked process, and kill it, or have a change of a file fail.

    Args:
        work: what is done; it is given a display to tell its progress to.
        place: the folder within which its file operations count.
        kill: when; None to let it live, and to learn of its operations.
        usual: seconds it takes as a rule.
        fault: that it meets. This process, and so that one, has to have faults.c loaded.

    Raises:
        Failed: it ended with an error, or did not end.
    """
    changes = mmap.mmap(-1, mmap.PAGESIZE)
    note, log = mmap.mmap(-1, _NOTE), place.with_name(f"{place.name}.operations")
    errors = place.with_name(f"{place.name}.error")
    sys.stdout.flush(), sys.stderr.flush()
    began = time.perf_counter()
    pid = os.fork()
    if not pid:
        if fault:
            counter = ctypes.c_int.from_buffer(changes)
            ctypes.CDLL(None).fault_arm(
                os.fsencode(f"{place}{os.sep}"), fault.number, fault.error, fault.stays, ctypes.byref(counter)
            )
        _live(work, place, kill, note, log, errors)
    status, asked = _wait(pid, began, kill, usual)
    where = note[:].split(b"\0", 1)[0].decode(errors="replace")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and kill:
        return Ended(True, where, time.perf_counter() - began)
    if kill and kill.asks and (os.WIFEXITED(status) and os.WEXITSTATUS(status) == _STOPPED or status == signal.SIGTERM):
        return Ended(True, where, asked - began, answered=time.perf_counter() - asked)
    count = int.from_bytes(changes[:4], sys.byteorder)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _REFUSED and fault:
        told = errors.read_text(encoding="utf-8")
        return Ended(False, where, time.perf_counter() - began, (), told, count)
    if status:
        told = errors.read_text(encoding="utf-8") if errors.exists() else f"status {status}"
        raise Failed(f"after {where}: {told}")
    lines = log.read_text(encoding="utf-8").splitlines() if not kill else []
    operations = [Operation(*line.split("\t")) for line in lines]
    return Ended(False, where, time.perf_counter() - began, operations, "", count)


def _wait(pid: int, began: float, kill: Kill | None, usual: float) -> tuple[int, float]:
    """Its status, and when it was asked to stop."""
    moment = kill.seconds if kill and not kill.operation else None
    asked = 0.0
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status, asked
        lived = time.perf_counter() - began
        if moment is not None and lived >= moment and not asked:
            asked = time.perf_counter()
            os.kill(pid, signal.SIGTERM if kill and kill.asks else signal.SIGKILL)
        if lived > _OUTLIVED * usual + 30:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Failed(f"did not end within {lived:.0f} s")
        time.sleep(0.002)


def _live(
    work: Callable[[Display], object], place: Path, kill: Kill | None, note: mmap.mmap, log: Path, errors: Path
) -> None:
    """The life of the forked process; it never returns."""
    code = 1
    try:
        gc.freeze()  # Else each run would go through all that was imported, several times.
        torch.set_num_threads(1)
        os.environ["TWOSTAGE_CACHE"] = str(place / "cache")
        telling = _Teller(note, place, kill.operation if kill else 0, None if kill else log)
        sys.addaudithook(telling.hear)
        work(_Telling(telling.note))
        telling.close()
        code = 0
    except KeyboardInterrupt:
        code = _STOPPED
    except UserError as error:
        errors.write_text(str(error), encoding="utf-8")
        code = _REFUSED
    except BaseException:  # noqa: BLE001  Whatever it is, the process that forked has to hear of it, and goes on.
        errors.write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


class _Teller:
    """Counts file operations, tells where the process is, and dies at the operation it is to die at."""

    def __init__(self, shared: mmap.mmap, place: Path, dies_at: int, log: Path | None) -> None:
        self._shared, self._root, self._dies_at = shared, f"{place}{os.sep}", dies_at
        self._count, self._progress = 0, "begun"
        self._log = open(log, "w", encoding="utf-8") if log else None  # noqa: SIM115  Open as long as the process lives.

    def note(self, text: str) -> None:
        """Progress: what a kill at a moment is told by."""
        self._progress = text
        self._tell(text)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Python's own word of what it is about to do."""
        if event == "open":
            path, flags = args[0], args[2]
            if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            name = path
        elif event in _CHANGES:
            name = _whole_name(args[1] if event == "os.rename" else args[0], args[-1])
        else:
            return
        if not name.startswith(self._root):
            return
        operation = Operation(event.removeprefix("os."), _kind(event, name[len(self._root) :]), name[len(self._root) :])
        self._count += 1
        if self._log:
            self._log.write(f"{operation.what}\t{operation.kind}\t{operation.file}\n")
        self._tell(f"{self._progress}, before {operation.what} {operation.file}")
        if self._count == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        if self._log:
            self._log.close()

    def _tell(self, text: str) -> None:
        self._shared[:] = text.encode()[: _NOTE - 1].ljust(_NOTE, b"\0")


def _whole_name(path: Any, folder: Any) -> str:
    """A whole tree is removed by names relative to a folder that is held open."""
    name = os.fspath(path) if isinstance(path, str | Path) else ""
    held = isinstance(folder, int) and folder >= 0 and not os.path.isabs(name)
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name) if held else name


def _kind(event: str, file: str) -> str:
    """What of a run an operation belongs to."""
    parts = file.split("/")
    if parts[0] == "cache":
        return f"cache: {parts[1]}" if len(parts) > 1 else "cache"
    name = parts[1] if len(parts) > 1 else parts[0]
    if name == "checkpoints":
        prunes = event in ("os.remove", "os.rmdir") and UNFINISHED not in file
        return "pruning" if prunes or "best-" in file else "checkpoint"
    if parts[0] == "export":
        return "export"
    return name.removeprefix(UNFINISHED).split("-")[-1] if UNFINISHED in name else name
