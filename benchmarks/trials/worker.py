"""Trials side by side, a process and a thread of torch for each core."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks.trials.candidates import CANDIDATES, REDRAWN, TESTED
from benchmarks.trials.carrying_out import Job, Trials

_trials: Trials


def _begin(folder: Path) -> None:
    global _trials
    torch.set_num_threads(1)
    os.environ["TWOSTAGE_CACHE"] = str(folder.absolute() / "cache")
    _trials = Trials(folder, [*CANDIDATES, *TESTED, *REDRAWN])


def _carry_out(job: Job) -> str:
    began = time.perf_counter()
    try:
        _trials.do(job)
    except Exception:  # noqa: BLE001  One broken trial ends no other.
        return f"{job.where}\n{traceback.format_exc()}"
    return f"{job.where} {time.perf_counter() - began:.0f} s"


def carry_out_all(folder: Path, jobs: Sequence[Job], processes: int | None = None) -> None:
    """Carry out what is not done yet, and print a line for each.

    The caller sets OMP_NUM_THREADS=1 before it imports torch, so that a process takes one core.
    """
    trials = Trials(folder, [*CANDIDATES, *TESTED, *REDRAWN])
    todo = [job for job in jobs if not trials.record(job).exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), context, _begin, (folder,)) as pool:
        for done, future in enumerate(as_completed([pool.submit(_carry_out, job) for job in todo]), start=1):
            print(f"[{done}/{len(todo)}] {future.result()}", flush=True)
