"""Run a training script or module as it is, and note when its optimizer has made each step.

    python benchmarks/stopwatch.py FIGURES.json train_dreambooth.py [ARGUMENT ...]
    python benchmarks/stopwatch.py FIGURES.json -m cli [ARGUMENT ...]

torch calls a hook after any optimizer's step; nothing in the script is touched. Imports torch alone, so that any
interpreter that can run the script can run this.
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


def peak_resident() -> int:
    """Bytes the process has held at most. The system's own count begins before the program that is run."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    output, target, *arguments = sys.argv[1:]
    clock: list[float] = []
    processor: list[float] = []

    def note(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock.append(time.perf_counter())
        processor.append(time.process_time())

    register_optimizer_step_post_hook(note)
    try:
        if target == "-m":
            sys.argv, sys.path[0] = arguments, os.getcwd()
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [target, *arguments], str(Path(target).parent)
            runpy.run_path(target, run_name="__main__")
    finally:
        figures = {"clock": clock, "cpu": processor, "peak_resident_bytes": peak_resident()}
        if torch.cuda.is_available():
            figures["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        Path(output).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
