"""What a person sees of a run: a progress bar where one watches, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from twostage.errors import shown

# Between two lines of a log.
_LINE_SECONDS = 10.0


class Update(Protocol):
    """Called after a step: how many are done, and what to show beside (loss, learning rate)."""

    def __call__(self, done: int, **numbers: float) -> None: ...


class OverviewUpdate(Protocol):
    """Called now and then: how much of the total is done, and a line for each thing that is under way."""

    def __call__(self, done: float, lines: Sequence[str]) -> None: ...


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

    @contextmanager
    def overview(self, label: str, total: float) -> Iterator[OverviewUpdate]:
        """Follow much work of which several parts are under way at once; `total` is in any unit."""

        def ignore(done: float, lines: Sequence[str]) -> None:
            pass

        yield ignore


class _Bars(Display):
    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(shown(text), markup=False, highlight=False)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(shown(label), total=total, completed=done, numbers="")

            def update(done: int, **numbers: float) -> None:
                bars.update(task, completed=done, numbers=_format(numbers))

            yield update

    @contextmanager
    def overview(self, label: str, total: float) -> Iterator[OverviewUpdate]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Parts of the work differ in speed, so the rate is that of a long while.
        bars = Progress(*columns, console=self._console, speed_estimate_period=600)
        task = bars.add_task(shown(label), total=total)
        with Live(bars, console=self._console, refresh_per_second=2) as live:

            def update(done: float, lines: Sequence[str]) -> None:
                bars.update(task, completed=done)
                told = (Text(f"  {shown(line)}", no_wrap=True, overflow="ellipsis") for line in lines)
                live.update(Group(bars, *told))

            yield update


class _Lines(Display):
    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(shown(text), markup=False, highlight=False, soft_wrap=True)

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

    @contextmanager
    def overview(self, label: str, total: float) -> Iterator[OverviewUpdate]:
        begun = last = time.monotonic()

        def update(done: float, lines: Sequence[str]) -> None:
            nonlocal last
            now = time.monotonic()
            if done < total and now - last < _LINE_SECONDS:
                return
            last = now
            share = done / total if total else 1.0
            eta = f"  {(now - begun) * (1 - share) / share:.0f} s left" if 0 < share < 1 else ""
            self.say("  ".join([f"{label}  {share:.0%}{eta}", *lines]))

        yield update


def terminal_display() -> Display:
    """Bars when standard error is a terminal, a line every 10 seconds otherwise. Standard output is left to results."""
    console = Console(stderr=True)
    return _Bars(console) if console.is_terminal else _Lines(console)


def _format(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
