"""Programs that run under `stopwatch.py` and take turns, a step each: a machine that slows down slows all of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Threads of OpenMP spin for some milliseconds after their work, and would take the next one's time.
_REST = 0.02


@dataclass(frozen=True)
class Program:
    """What is run.

    Attributes:
        command: under `stopwatch.py`.
        environment: of the process.
        log: what it says goes there.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


class Broken(Exception):
    """A program ended with an error, or made another number of steps; the message names its log."""


class _Runner:
    """One program, asleep but in its turn."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._program = program
        own, self._go = os.pipe()
        self._done, done = os.pipe()
        with program.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                program.command,
                stdout=log,
                stderr=log,
                env={**program.environment, "TURNS": f"{own},{done}"},
                cwd=folder,
                pass_fds=(own, done),
            )
        os.close(own)
        os.close(done)  # So that reading ends when the program does.

    def wait(self) -> None:
        """Until it has made a step."""
        if not os.read(self._done, 1):
            raise Broken(f"{self._program.command} ended with {self._process.wait()}; see {self._program.log}")

    def turn(self) -> None:
        time.sleep(_REST)
        os.write(self._go, b".")

    def finish(self) -> None:
        """Let it go on to its end, without turns."""
        self.turn()
        if self._process.wait() or os.read(self._done, 1):
            raise Broken(f"{self._program.command} did not end well; see {self._program.log}")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        os.close(self._go)
        os.close(self._done)


def take_turns(programs: Sequence[Program], steps: int, folder: Path) -> None:
    """Run programs side by side, one step of each after the other; who is first in a round is last in the next.

    Each is alone while it starts, until its first step, and while it ends.

    Args:
        programs: of which each makes `steps` steps of an optimizer.
        steps: at least 1.
        folder: they run in.

    Raises:
        Broken: one of them has not.
    """
    runners: list[_Runner] = []
    try:
        for program in programs:
            runners.append(_Runner(program, folder))
            runners[-1].wait()
        for step in range(1, steps):
            for runner in runners[:: -1 if step % 2 else 1]:
                runner.turn()
                runner.wait()
        for runner in runners:
            runner.finish()
    finally:
        for runner in runners:
            runner.close()
