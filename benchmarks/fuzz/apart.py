"""Something done in a process of its own, with a limit of time and one of memory."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Literal

from twostage.errors import UserError
from twostage.lack import OutOfMemory, lacks_memory

SECONDS = 10.0
# Beside what the process has when it begins.
MEMORY = 3 * 2**30
_LONGEST = 2_000


@dataclass(frozen=True)
class Outcome:
    """What came of reading an input.

    Attributes:
        kind: read, or refused in one line as it should be; else failed.
        told: the line, or what went wrong.
    """

    kind: Literal["read", "refused", "failed"]
    told: str = ""


class Hang(BaseException):
    """Time is up; no reader catches it."""


def do_apart(work: Callable[[], None], seconds: float = SECONDS) -> Outcome:
    """Do something that may crash or never end, and say what came of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            outcome = _tried(work, seconds)
            os.write(writing, json.dumps([outcome.kind, outcome.told[:60_000]]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        told = _read(reading, time.monotonic() + seconds + 3)
    finally:
        os.close(reading)
        if told is None:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if told is None:
        return Outcome("failed", f"hangs where no signal ends it: killed after {seconds + 3:g} s")
    if not told:
        return Outcome("failed", f"crashed: wait status {status} (signal {os.WTERMSIG(status)})")
    return Outcome(*json.loads(told))


def _read(pipe: int, until: float) -> bytes | None:
    told = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(until - time.monotonic(), 0))
        if not ready:
            return None
        part = os.read(pipe, 1 << 16)
        if not part:
            return told
        told += part


def _tried(work: Callable[[], None], seconds: float) -> Outcome:
    # The files of the process that was left behind may be locked by a thread that is not here.
    quiet = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  The process ends before it does.
    sys.stdout = sys.stderr = quiet
    os.dup2(quiet.fileno(), 1)
    os.dup2(quiet.fileno(), 2)
    gc.freeze()  # Else each run would go through all that was imported, several times.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _pages() * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        work()
    except OutOfMemory as error:
        return Outcome("failed", f"asks for too much memory: {error}")
    except UserError as error:
        return _judged(str(error))
    except Hang:
        return Outcome("failed", f"hangs, {seconds:g} s:\n{traceback.format_exc()}")
    except BaseException as error:  # noqa: BLE001  Whatever else there is, is what is looked for.
        short = "asks for too much memory:\n" if lacks_memory(error) else ""
        return Outcome("failed", short + traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome("read")


def _judged(line: str) -> Outcome:
    lines = line.splitlines()
    if not lines or len(lines) > 1 and not all(".toml: " in one for one in lines):  # A recipe's mistakes have one each.
        return Outcome("failed", f"refused, but not in one line: {line!r}")
    if not "".join(lines).replace("\t", "").isprintable():
        return Outcome("failed", f"refused in a line that no terminal should get: {line!r}")
    if max(map(len, lines)) > _LONGEST:
        return Outcome("failed", f"refused in a line of {len(line)} letters: {line[:300]!r}")
    return Outcome("refused", line)


def _end(number: int, frame: FrameType | None) -> None:
    raise Hang


def _pages() -> int:
    """Of the address space that this process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0])
