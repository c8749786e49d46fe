"""Killed outright at any moment, or on a disk that fails, work goes on to what it would have become."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPORT = "export to diffusers"


def run(module: str, folder: Path, base: Path, *options: str) -> str:
    """A benchmark's own command, in a process that has made no threads that a fork would lose."""
    command = [sys.executable, "-m", module, str(folder), "--base", str(base), "--seed", "7", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are dealt to forked processes")
def test_ten_kills_at_random_moments_change_no_bit_of_what_comes_out(tiny_base: Path, tmp_path: Path) -> None:
    jobs = ("two-stage, the best checkpoint", "dreambooth", EXPORT)
    said = run("benchmarks.kills", tmp_path / "kills", tiny_base, "--kills", "10", "--jobs", *jobs)
    assert "10 kills in" in said and " 0 of them wrong" in said
    assert "checkpoint" in said and "cache" in said


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir() or not shutil.which("cc"), reason="wants Linux and a compiler")
def test_a_disk_that_fails_at_any_write_is_told_in_a_line_and_costs_nothing_that_was_saved(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Below Python and safetensors: full, over quota, read-only, forbidden, broken once, vanished."""
    said = run(
        "benchmarks.kills.faults", tmp_path / "faults", tiny_base, "--faults", "9", "--jobs", "two-stage", EXPORT
    )
    assert "9 faults: " in said and "; 0 wrong" in said
