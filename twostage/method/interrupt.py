"""Ctrl-C and SIGTERM: at once where nothing is lost by it, else a question that training asks as soon as it can."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether someone asked to stop, and whether that waits.

    Attributes:
        asked: whether someone did.
    """

    def __init__(self, waits: bool = True) -> None:
        self.asked, self._waits = False, waits

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it, a request is noted, and nothing else happens."""
        with self._waiting(True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, within `held`, a request ends all, and so does one that was noted."""
        with self._waiting(False):
            if self.asked:
                raise KeyboardInterrupt
            yield

    @contextmanager
    def _waiting(self, waits: bool) -> Iterator[None]:
        before, self._waits = self._waits, waits
        try:
            yield
        finally:
            self._waits = before

    def ask(self) -> None:
        """Ask; only the first time counts, and what it began is not broken off by another.

        Raises:
            KeyboardInterrupt: it need not wait.
        """
        first, self.asked = not self.asked, True
        if first and not self._waits:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals(waits: bool = True) -> Iterator[StopRequest]:
    """Within it, a first Ctrl-C or SIGTERM is a request; a second one acts as it would without us, as do ignored ones.

    Args:
        waits: whether requests wait everywhere, but where it is said that they do not.
    """
    request = StopRequest(waits)
    if threading.current_thread() is not threading.main_thread():
        yield request  # Only the main thread can be told of signals.
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        request.ask()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
