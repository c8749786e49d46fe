"""What a person sees of a run: a progress bar where one watches, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Between two lines of a log.
_LINE_SECONDS = 10.0


class Update(Protocol):
    """Called after a step: how many are done, and what to show beside (loss, learning rate)."""

    def __call__(self, done: int, **numbers: float) -> None: ...


class Display:
    """Shows nothing: what a program that calls this one wants. `terminal_display` is for people."""

    def say(self, text: str) -> None:
        """Tell something once."""

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        """Follow `total` steps, of which `done` are behind us."""

        def ignore(done: int, **numbers: float) -> None:
            pass

        yield ignore


class _Bars(Display):
    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(label, total=total, completed=done, numbers="")

            def update(done: int, **numbers: float) -> None:
                bars.update(task, completed=done, numbers=_format(numbers))

            yield update


class _Lines(Display):
    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        begun, first, last = time.monotonic(), done, time.monotonic()

        def update(done: int, **numbers: float) -> None:
            nonlocal last
            now = time.monotonic()
            if done < total and now - last < _LINE_SECONDS:
                return
            last = now
            left = (now - begun) / max(done - first, 1) * (total - done)
            eta = f"  {left:.0f} s left" if done < total else f"  took {now - begun:.0f} s"
            self.say(f"{label}  {done}/{total}  {_format(numbers)}{eta}")

        yield update


def terminal_display() -> Display:
    """Bars when standard error is a terminal, a line every 10 seconds otherwise. Standard output is left to results."""
    console = Console(stderr=True)
    return _Bars(console) if console.is_terminal else _Lines(console)


def _format(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
