"""Killed outright at any moment, work goes on to what it would have become."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, folder: Path, base: Path, *options: str) -> str:
    """A benchmark's own command, in a process that has made no threads that a fork would lose."""
    command = [sys.executable, "-m", module, str(folder), "--base", str(base), "--seed", "7", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are dealt to forked processes")
def test_ten_kills_at_random_moments_change_no_bit_of_what_comes_out(tiny_base: Path, tmp_path: Path) -> None:
    jobs = ("two-stage, the best checkpoint", "dreambooth", "export to diffusers")
    said = run("benchmarks.kills", tmp_path / "kills", tiny_base, "--kills", "10", "--jobs", *jobs)
    assert "10 kills in" in said and " 0 of them wrong" in said
    assert ", before " in said  # A file operation, and not moments alone.
