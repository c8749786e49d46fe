"""Run a training script or module as it is, and note when its optimizer has made each step.

    python benchmarks/stopwatch.py FIGURES.json train_dreambooth.py [ARGUMENT ...]
    python benchmarks/stopwatch.py FIGURES.json -m cli [ARGUMENT ...]

torch calls a hook after any optimizer's step; nothing in the script is touched. Imports torch alone, so that any
interpreter that can run the script can run this.

Where the variable TURNS names two file descriptors, "READ,WRITE", the script takes turns with others: after each step
it writes a byte and sleeps until it can read one, so that a turn is one step, and the next one begins with the byte.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stopwatch:
    """Times by the clock and by the processor, on all threads.

    Attributes:
        seconds, processor: of each step but the first, from the end of the step before; where turns are taken, from the
            begin of its turn.
        waiting: processor time that went by while others had their turn: threads that do not sleep.
    """

    def __init__(self, turns: str) -> None:
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.waiting = 0.0
        self._turns = tuple(map(int, turns.split(","))) if turns else None
        self._began: tuple[float, float] | None = None

    def note(self, *_: Any) -> None:
        """The optimizer has made a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock, processor = time.perf_counter(), time.process_time()
        if self._began:
            self.seconds.append(clock - self._began[0])
            self.processor.append(processor - self._began[1])
        if self._turns:
            self._wait(*self._turns)
            self.waiting += time.process_time() - processor
            clock, processor = time.perf_counter(), time.process_time()
        self._began = clock, processor

    def _wait(self, own: int, done: int) -> None:
        os.write(done, b".")
        if not os.read(own, 1):
            sys.exit("whoever gave the turns is gone")


def peak_resident() -> int:
    """Bytes the process has held at most. The system's own count begins before the program that is run."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    output, target, *arguments = sys.argv[1:]
    watch = Stopwatch(os.environ.pop("TURNS", ""))
    register_optimizer_step_post_hook(watch.note)
    try:
        if target == "-m":
            sys.argv, sys.path[0] = arguments, os.getcwd()
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [target, *arguments], str(Path(target).parent)
            runpy.run_path(target, run_name="__main__")
    finally:
        figures = {
            "seconds": watch.seconds,
            "cpu_seconds": watch.processor,
            "cpu_seconds_waiting": watch.waiting,
            "peak_resident_bytes": peak_resident(),
        }
        if torch.cuda.is_available():
            figures["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        Path(output).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
