"""Memory that is freed is kept for the next step."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from twostage.memory.heap import keep_freed_memory

_AGAIN_AND_AGAIN = """
import resource, sys, torch
from twostage.memory.heap import keep_freed_memory
keep_freed_memory() if "kept" in sys.argv else None
for _ in range(24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(1 << 26).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_tensor_that_is_made_in_every_step_gets_its_pages_once():
    """256 MiB, which glibc would get from the system each time; aligned blocks take some steps to find their place."""

    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", _AGAIN_AND_AGAIN, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    pages = (1 << 28) // resource.getpagesize()
    assert faults() > 100  # Of 4 KiB, or of 2 MiB where the system has those.
    assert faults("kept") < min(pages // 100, 100)


def test_asking_twice_is_the_same():
    assert keep_freed_memory() == keep_freed_memory()
