"""On a disk that fails below Python and safetensors, work ends in a line and goes on to what it would have become."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.durability.test_kills import run


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir() or not shutil.which("cc"), reason="wants Linux and a compiler")
def test_a_disk_that_fails_at_any_write_is_told_in_a_line_and_costs_nothing_that_was_saved(
    tiny_base: Path, tmp_path: Path
) -> None:
    """One of each kind: full, over quota, read-only, forbidden, broken once, vanished."""
    said = run("benchmarks.kills.faults", tmp_path / "faults", tiny_base, "--faults", "6", "--jobs", "two-stage")
    assert "6 faults: " in said and "; 0 wrong" in said
