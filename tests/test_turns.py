"""The benchmark of speed: programs take turns, a step each, and their times are those of their own turns."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.turns import Broken, Program, take_turns

STOPWATCH = Path(__file__).parent.parent / "benchmarks" / "stopwatch.py"
SCRIPT = """
import sys, time, torch
name, steps = sys.argv[1], int(sys.argv[2])
number = torch.nn.Parameter(torch.zeros(()))
number.grad = torch.zeros(())
optimizer = torch.optim.SGD([number])
for _ in range(steps):
    with open("turns.txt", "a") as file:
        file.write(name)
    time.sleep(0.2 if name == "b" else 0)
    optimizer.step()
"""


def _program(folder: Path, name: str, steps: int) -> Program:
    (folder / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        str(STOPWATCH),
        str(folder / f"{name}.json"),
        str(folder / "script.py"),
        name,
        str(steps),
    ]
    return Program(command, os.environ, folder / f"{name}.log")


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors are not inherited")
def test_programs_take_turns_and_each_is_timed_in_its_own(tmp_path: Path) -> None:
    take_turns([_program(tmp_path, name, 4) for name in "ab"], 4, tmp_path)
    assert (tmp_path / "turns.txt").read_text() == "ab" + "ba" + "ab" + "ba"
    noted = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"}
    assert all(len(noted[name]["seconds"]) == 3 for name in "ab")
    assert sorted(noted["a"]["seconds"])[1] < 0.2 <= min(noted["b"]["seconds"])


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors are not inherited")
def test_a_program_that_makes_fewer_steps_is_named(tmp_path: Path) -> None:
    with pytest.raises(Broken, match="a.log"):
        take_turns([_program(tmp_path, "a", 2)], 4, tmp_path)
