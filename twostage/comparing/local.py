"""The engine for one machine: a process for each GPU, or for each share of the CPU.

A worker lives in an executor of its own, so that the death of one leaves the others at work.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from types import FrameType
from typing import Any

from twostage.comparing.engine import Ended, Work

RETRIES = 3


@dataclass
class _Worker:
    gpu: str | None
    executor: ProcessPoolExecutor | None = None
    pid: int = 0
    work: Work | None = None
    future: Future[dict[str, Any]] | None = None
    deaths: int = 0


class LocalEngine:
    """Workers on this machine.

    Args:
        workers: how many; a GPU has one.
        gpus: as CUDA_VISIBLE_DEVICES names them; none for the CPU.
        retries: of a job whose worker dies.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = (), retries: int = RETRIES) -> None:
        self._workers = [_Worker(gpu) for gpu in gpus] or [_Worker(None) for _ in range(workers)]
        self._retries = retries
        self._stopping = False

    @property
    def free(self) -> int:
        """Jobs that could begin now."""
        return sum(worker.future is None for worker in self._workers)

    def submit(self, work: Work) -> None:
        """Begin a job; there has to be a free worker."""
        # One that has its libraries loaded, if any.
        free = [worker for worker in self._workers if worker.future is None]
        worker = min(free, key=lambda worker: worker.executor is None)
        self._start(worker, work)

    def ended(self, timeout: float) -> list[Ended]:
        """Jobs that have ended, within some seconds at most. One whose worker died is begun again meanwhile."""
        futures = [worker.future for worker in self._workers if worker.future]
        wait(futures, timeout, FIRST_COMPLETED)
        found = []
        for worker in self._workers:
            if worker.future is None or not worker.future.done():
                continue
            work, error = worker.work, worker.future.exception()
            assert work
            if isinstance(error, BrokenProcessPool):
                self._bury(worker)
                worker.deaths += 1
                if worker.deaths <= self._retries and not self._stopping:
                    self._start(worker, work)
                    continue
                error = (
                    KeyboardInterrupt()
                    if self._stopping
                    else RuntimeError(
                        f"its worker died {worker.deaths} times (killed, or out of memory: fewer --workers need less)"
                    )
                )
            found.append(Ended(work.name, worker.future.result() if error is None else None, error))
            worker.future = worker.work = None
            worker.deaths = 0
        return found

    def stop(self) -> None:
        """Ask the workers to end: those that train do at their next step, and save it."""
        self._stopping = True
        for worker in self._workers:
            if worker.future:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGTERM)

    def close(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            if worker.executor:
                if worker.future:
                    with suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)
                worker.executor.shutdown(cancel_futures=True)

    def _start(self, worker: _Worker, work: Work) -> None:
        if worker.executor is None:
            # Spawned, since CUDA does not survive a fork.
            worker.executor = ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=_begin, initargs=(worker.gpu,)
            )
            worker.pid = worker.executor.submit(os.getpid).result()
        worker.work, worker.future = work, worker.executor.submit(_do, work)

    def _bury(self, worker: _Worker) -> None:
        assert worker.executor
        worker.executor.shutdown(wait=False, cancel_futures=True)
        worker.executor = None


def _begin(gpu: str | None) -> None:
    """In a worker, before it imports torch."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    # Of a Ctrl-C, all processes of the terminal are told; what the workers do is for the first one to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_once)
    threading.Thread(target=_follow, daemon=True).start()


def _do(work: Work) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work.run()
    finally:
        signal.signal(signal.SIGTERM, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Between jobs, and while one and its libraries are being loaded, nothing is there to save."""
    os._exit(1)


def _follow() -> None:
    """End with whoever started this worker: what it has saved is whole, and two must not write to one folder."""
    parent = parent_process()
    assert parent
    connection.wait([parent.sentinel])
    os._exit(1)
