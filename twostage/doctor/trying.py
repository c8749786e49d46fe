"""Trials carried out in processes of their own: what crashes or hangs there is told, and takes nothing else with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import IO, Any, Literal

from twostage.display import Display
from twostage.doctor.trials import TRIALS, Trial

# Seconds in which a trial has to end.
LIMIT = 90.0
Outcome = Literal["works", "fails", "absent", "not tried"]


@dataclass(frozen=True)
class Tried:
    """What came of a trial.

    Attributes:
        area, name: of the trial.
        outcome: "absent" where there is nothing of the kind here, and nothing is wrong with that.
        says: how it was tried, or why it fails; one line.
        seconds: it took.
        facts: about what was found.
    """

    area: str
    name: str
    outcome: Outcome
    says: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """That of the trial."""
        return f"{self.area}: {self.name}"


def try_all(display: Display, trials: Sequence[Trial] = TRIALS, limit: float = LIMIT) -> list[Tried]:
    """Carry out trials: those of third-party code each in a process of its own, all others in one.

    A trial that its process does not survive fails, and what comes after it is tried in another.

    Args:
        display: shows how far it is.
        trials: to carry out.
        limit: seconds for each.

    Returns:
        What came of each, in their order.
    """
    found: dict[str, Tried] = {}
    with display.progress("trying", len(trials)) as update:

        def note(tried: Tried) -> None:
            found[tried.key] = tried
            update(len(found))

        for trial in trials:
            if trial.package and not _is_installed(trial.package):
                note(Tried(trial.area, trial.name, "absent", "not installed"))
            elif trial.package:
                _carry_out([trial], limit, note)
        _carry_out([trial for trial in trials if not trial.package], limit, note)
    return [found[trial.key] for trial in trials]


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # A folder that happens to have the name has none.


def _carry_out(trials: Sequence[Trial], limit: float, note: Callable[[Tried], None]) -> None:
    left, failed = list(trials), set()
    while left:
        if lacking := next((key for key in left[0].needs if key in failed), None):
            trial = left.pop(0)
            note(Tried(trial.area, trial.name, "not tried", f"needs what fails: {lacking}"))
            failed.add(trial.key)
            continue
        with closing(_in_a_process(left, limit)) as answers:
            for tried in answers:
                left.pop(0)
                note(tried)
                if tried.outcome == "fails":  # What a kernel that failed leaves of a card, others may trip over.
                    failed.add(tried.key)
                    break


def _in_a_process(trials: Sequence[Trial], limit: float) -> Generator[Tried, None, None]:
    """What came of the first of them, and so on until all are tried, or the process has ended."""
    # The child finds what this process finds; a file of the working folder that has a library's name stays out of it.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", "twostage.doctor.child", *(trial.key for trial in trials)]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    last: deque[bytes] = deque(maxlen=50)  # Of what it says, which nobody reads while it works.
    reader = threading.Thread(target=last.extend, args=(process.stderr,), daemon=True)
    reader.start()
    waiting = list(trials)
    try:
        for line in _lines(process, process.stdout, limit):
            trial, answer = waiting.pop(0), json.loads(line)
            told = answer["told"]
            yield Tried(trial.area, trial.name, answer["outcome"], told.pop("says"), answer["seconds"], told)
        process.wait()
        if waiting:
            reader.join(timeout=1)
            yield Tried(waiting[0].area, waiting[0].name, "fails", _ending(process.returncode, last, limit))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _lines(process: subprocess.Popen[bytes], answers: IO[bytes], limit: float) -> Iterator[bytes]:
    """As they come; the process is ended where none comes in time."""
    while True:
        clock = threading.Timer(limit, process.kill)
        clock.start()
        try:
            line = answers.readline()
        finally:
            clock.cancel()
        if not line:
            return
        yield line


def _ending(code: int, said: Iterable[bytes], limit: float) -> str:
    """Why a process ended before it was done."""
    lines = [" ".join(line.decode("utf-8", "replace").split())[:300] for line in list(said)]
    last = next(filter(None, reversed(lines)), "")
    if code < 0:
        name = signal.Signals(-code).name
        how = f"it takes the process down ({name})" if name != "SIGKILL" else f"killed, or not done in {limit:.0f} s"
    else:
        how = f"it ends the process (exit code {code:#x})" if code > 255 else f"it ends the process (exit code {code})"
    return f"{how}: {last}" if last else how
