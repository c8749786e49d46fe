"""Ctrl-C and SIGTERM: at once where nothing is lost by it, else a question that training asks as soon as it can."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop(KeyboardInterrupt):
    """Someone asked to stop, and nothing is half done. A second signal is a KeyboardInterrupt, whatever is going on."""


class StopRequest:
    """Whether someone asked to stop, and whether that waits.

    Attributes:
        asked: whether someone did.
    """

    def __init__(self, waits: bool = True) -> None:
        self.asked, self._waits, self._holds = False, waits, False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it, a request is noted, and nothing else happens; what was noted and not answered is, at its end."""
        with self._waiting(True):
            yield
        if self.asked and not (self._waits or self._holds):
            raise Stop

    def hold(self) -> None:
        """From now on, note requests and do nothing: what is begun is over sooner than it would be broken off."""
        self._holds = True

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, within `held`, a request ends all, and so does one that was noted."""
        with self._waiting(False):
            if self.asked and not self._holds:
                raise Stop
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
            Stop: it need not wait.
        """
        first, self.asked = not self.asked, True
        if first and not (self._waits or self._holds):
            raise Stop


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
    # None is a handler that Python has not set, and could not put back.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

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
