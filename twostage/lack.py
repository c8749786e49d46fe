"""Out of memory: how it is recognised, and what it becomes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from twostage.errors import UserError

# What the libraries say of it in errors that could be about anything else: the system (of torch's allocator on a CPU,
# or of a file that is read), torch's allocator on Windows, C++ itself, and on a GPU the driver, cuBLAS and cuDNN.
_SAID = (
    "Cannot allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# oneDNN's, which has no other words for it; and these for more than that.
_PERHAPS = ("could not create a primitive", "could not create a memory object", "could not execute a primitive")
# Bytes that a process gets, unless it is at its limit.
_PROBE = 1 << 26


class OutOfMemory(UserError):
    """There was not enough memory; what was done before is kept.

    Attributes:
        phase: of the run, by its name in run.json; "" between two of them.
        stage: that was under way, or had been last; 0 before the first.
        step: the last that was done, where the phase is a stage.
        kept: the step that a resumed run goes on after; the same, unless the next one had begun to move weights.
    """

    def __init__(self, message: str, phase: str, stage: int, step: int = 0, kept: int = 0) -> None:
        super().__init__(message)
        self.phase, self.stage, self.step, self.kept = phase, stage, step, kept

    def bare(self) -> OutOfMemory:
        """The same without a traceback, whose frames hold the nets."""
        return OutOfMemory(str(self), self.phase, self.stage, self.step, self.kept)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or what led to it, says that memory is short, of a GPU or of a CPU, and nothing else."""
    found: BaseException | None = error
    while found is not None and not _says_so(found):
        found = found.__cause__ or found.__context__  # Libraries tell of a file that they could not read, and not why.
    return found is not None


def _says_so(error: BaseException) -> bool:
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError | OSError):
        return False
    told = str(error)
    return any(said in told for said in _SAID) or any(said in told for said in _PERHAPS) and _is_full()


def _is_full() -> bool:
    """Whether the system gives this process no more."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return False
    try:
        mmap.mmap(-1, _PROBE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return True
    return False


@contextmanager
def told_of_lack(phase: str, stage: int, message: str) -> Iterator[None]:
    """Within it, a lack of memory is an `OutOfMemory` of that phase, stage and message.

    Raises:
        OutOfMemory: without the error behind it, whose traceback would keep all that had been computed.
    """
    lacking = False
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        lacking = True
    if lacking:
        raise OutOfMemory(message, phase, stage)
