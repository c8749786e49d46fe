"""Ctrl-C and SIGTERM in a run: what is done is saved, and it is said how to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn

from twostage.display import Display
from twostage.method.interrupt import Stop, StopRequest, stop_on_signals
from twostage.method.loop import StageLoop
from twostage.run_folder import RunFolder


class Stopping:
    """Of one session.

    Args:
        folder: of the run.
        display: told how to go on.
        together: whether other processes would wait for one that leaves by itself; then all leave between two steps.
    """

    def __init__(self, folder: RunFolder, display: Display, together: bool) -> None:
        self._folder, self._display, self._together = folder, display, together
        self._request = StopRequest()

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self._request.asked

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within it, a stop comes at once, but where a stage is `leaving`, and says how to go on."""
        with stop_on_signals(waits=self._together) as self._request:
            try:
                yield
            except KeyboardInterrupt as stop:
                if stop.args:
                    raise
                self.leave()

    @contextmanager
    def leaving(self, loop: StageLoop, save: Callable[[StageLoop], None]) -> Iterator[None]:
        """Within it, a stop waits for `between_batches`, `at_once` or the caller, and the steps done are saved first.

        Args:
            loop: of the stage.
            save: writes a checkpoint.
        """
        with self._request.held():
            try:
                yield
            except Stop as stop:  # And not a second signal's, which may come while weights are half moved.
                if stop.args:
                    raise
                loop.forget_gradients()
                if loop.whole and loop.step and self._folder.checkpoints.newest_place() != (loop.stage, loop.step):
                    save(loop)
                self.leave()

    def at_once(self) -> AbstractContextManager[None]:
        """Within it, a stop does not wait."""
        return nullcontext() if self._together else self._request.at_once()

    def hold(self) -> None:
        """From now on, do not stop: the result is being written."""
        self._request.hold()

    def between_batches(self) -> None:
        """Stop, if that was asked for: a step of many batches takes long."""
        with self.at_once():
            pass

    def leave(self) -> NoReturn:
        """Say how to go on, and stop."""
        place = self._folder.checkpoints.newest_place()
        saved = f"after step {place[1]} of stage{place[0]} and saved" if place else "before the first checkpoint"
        message = f"stopped {saved}; go on with: twostage train {self._folder.path} --resume"
        self._display.say(message)
        raise Stop(message)
