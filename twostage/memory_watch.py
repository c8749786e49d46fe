"""A run's memory: what its stages take, beside what was predicted, and what is saved when there is too little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from twostage.display import Display
from twostage.gauge import Gauge, Prediction, compared, measured
from twostage.lack import OutOfMemory, lacks_memory, told_of_lack
from twostage.machine import peak_memory
from twostage.memory.heap import give_back
from twostage.method.loop import StageLoop, Step, Watch
from twostage.run_folder import RunFolder


class MemoryWatch:
    """Of one run.

    Args:
        folder: where the run is written.
        device: it trains on.
        display: for what is measured beside a prediction.
        prediction: of the run, where there is one; where there is none, nothing is told and a CPU's tensors are not
            counted.
        writes: whether this process is the one that does.
    """

    def __init__(
        self,
        folder: RunFolder,
        device: torch.device,
        display: Display,
        prediction: Prediction | None,
        writes: bool = True,
    ) -> None:
        self._folder, self._device, self._display, self._prediction = folder, device, display, prediction
        self._writes = writes
        self._stage = self._peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def peak(self) -> int:
        """Bytes: the most that was in use so far; see `machine.peak_memory`."""
        self._peak = max(self._peak, peak_memory(self._device))
        return self._peak

    @property
    def facts(self) -> dict[str, Any]:
        """What was predicted, for run.json."""
        return self._prediction.facts if self._prediction else {}

    def within(self, phase: str) -> AbstractContextManager[None]:
        """Within it, a lack of memory is one line; `phase` as in run.json, "" between two of them.

        Raises:
            OutOfMemory: there is too little.
        """
        where = f"in {phase}" if phase else "between two phases"
        return told_of_lack(phase, self._stage, f"out of memory {where}{self._way_out}")

    def steps(
        self,
        loop: StageLoop,
        nets: Mapping[str, nn.Module],
        look: Watch,
        save: Callable[[StageLoop], None],
        between: Callable[[], None] = lambda: None,
    ) -> Iterator[Step]:
        """A stage's steps as they come, the first of them measured.

        Args:
            loop: of the stage.
            nets: what it asks.
            look: called in each step; see `StageLoop.steps`.
            save: writes a checkpoint.
            between: called in each step too; see there.

        Raises:
            OutOfMemory: there is too little for a step; the one before is saved, where it still stands.
        """
        self._stage, _ = loop.stage, self.peak  # The gauge forgets a GPU's.
        gauge = Gauge(self._device, _tensors(loop, nets), followed=self._prediction is not None)
        lacking = False
        try:
            yield from measured(loop.steps(look, between), gauge, partial(self._note, loop.stage))
        except (RuntimeError, OSError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            lacking = True
        if lacking:  # Behind the error, whose traceback holds what had been computed.
            raise self._broken_off(loop, save)

    def _broken_off(self, loop: StageLoop, save: Callable[[StageLoop], None]) -> OutOfMemory:
        loop.forget_gradients()
        give_back()
        if loop.whole and loop.step and self._folder.checkpoints.newest_place() != (loop.stage, loop.step):
            with suppress(OutOfMemory):  # To write it takes memory too.
                save(loop)
        newest = self._folder.checkpoints.newest_place()
        kept = newest[1] if newest and newest[0] == loop.stage else 0
        message = f"out of memory in stage {loop.stage} after step {loop.step}{self._way_out}"
        return OutOfMemory(message, f"stage{loop.stage}", loop.stage, loop.step, kept)

    def _note(self, stage: int, found: dict[str, int]) -> None:
        if not self._writes:
            return
        predicted: dict[str, int] = {}
        if self._prediction:
            self._display.say(compared(stage, found, self._prediction))
            predicted = {"predicted": self._prediction.peaks[stage]}
        before = self._folder.facts.get("measured", {})
        self._folder.update(measured=before | {f"stage{stage}": found | predicted})

    @property
    def _way_out(self) -> str:
        """What to do where memory is short, for the end of a message."""
        if "finished" not in self._folder.facts:
            return "; --vram auto makes it fit"
        return f"; go on in less with: twostage train {self._folder.path} --resume --vram auto"


def _tensors(loop: StageLoop, nets: Mapping[str, nn.Module]) -> Iterator[Tensor]:
    """All that a stage holds before its next step."""
    for net in nets.values():
        yield from chain(net.parameters(), net.buffers())
    progress = loop.progress()
    yield from chain(progress.trained.values(), progress.optimizer.values(), progress.averaged.values())
