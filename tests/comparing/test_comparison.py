"""Comparisons from beginning to end, also when they are killed on the way."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.watching import Watcher
from twostage.comparing import Budget, Comparison, Machine, Request, compare
from twostage.errors import UserError

Ask = Callable[..., Request]
WORKER = Machine(workers=1)


def figures(root: Path) -> dict[str, Any]:
    """Every value of every figure of every run."""
    found = {}
    for file in sorted((root / "runs").rglob("evaluation.json")):
        record = json.loads(file.read_text())
        found[file.parent.relative_to(root).as_posix()] = {row: record[row] for row in ("figures", "base", "real")}
    return found


@pytest.fixture(scope="module")
def request_of_two(ask: Ask) -> Request:
    return ask("both", "word", vary={"stage2.steps": [2, 4]})


@pytest.fixture(scope="module")
def unbroken(request_of_two: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of four rows; never write to it."""
    root = tmp_path_factory.mktemp("comparisons") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTAGE_CACHE", str(root.parent / "cache"))
        done = compare(request_of_two, root, machine=WORKER, command="twostage compare", display=Watcher())
    assert not done.failed
    return root


def test_each_row_is_trained_evaluated_and_reported(unbroken: Path) -> None:
    record = json.loads((unbroken / "compare.json").read_text())
    assert set(figures(unbroken)) == {f"runs/{name}" for name in record["cells"]}
    assert len(record["cells"]) == 4
    for name in ("report.html", "report.md", "report.json", "report.csv"):
        assert (unbroken / name).stat().st_size
    assert "both stage2.steps 2" in (unbroken / "report.md").read_text()
    assert not list(unbroken.glob("runs/*/*/*/checkpoints/*"))
    assert not list(unbroken.glob("runs/*/*/*/samples"))


def test_the_same_request_again_changes_nothing_and_another_is_refused(request_of_two: Request, unbroken: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (unbroken / "runs").rglob("*")}
    watcher = Watcher()
    done = compare(request_of_two, unbroken, machine=WORKER, display=watcher)
    assert "4 of 4 runs are finished already" in watcher.said
    assert len(done.rows) == 4
    assert {path: path.stat().st_mtime_ns for path in (unbroken / "runs").rglob("*")} == before
    other = request_of_two.model_copy(update={"seeds": (0, 1)})
    with pytest.raises(UserError, match=r"holds another comparison: seeds \(\[0\], now \[0, 1\]\).*twostage compare"):
        compare(other, unbroken, machine=WORKER, display=Watcher())


# What a kill comes after: a checkpoint of the shared stage 1, one of stage 2, pictures, a first result.
MOMENTS = (
    "shared/*/checkpoints/stage1-*",
    "runs/*/*/*/checkpoints/stage2-*",
    "runs/*/*/*/evaluation/subject/*.png",
    "runs/*/*/*/evaluation.json",
)


def test_a_comparison_killed_at_any_point_ends_with_the_same_figures(
    request_of_two: Request, unbroken: Path, tmp_path: Path
) -> None:
    root = tmp_path / "killed"
    (tmp_path / "request.json").write_text(request_of_two.model_dump_json())
    code = (
        "from pathlib import Path; from twostage.comparing import *; "
        f"request = Request.model_validate_json(Path({str(tmp_path / 'request.json')!r}).read_text()); "
        f"compare(request, {str(root)!r}, machine=Machine(workers=1))"
    )
    for moment in MOMENTS:
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(root.glob(moment)):
            time.sleep(0.01)
        assert process.poll() is None, f"it ended before {moment} was seen"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = compare(request_of_two, root, machine=WORKER, display=Watcher())
    assert not done.failed
    assert figures(root) == figures(unbroken)


def test_ctrl_c_saves_what_trains_and_says_how_to_go_on(ask: Ask, unbroken: Path, tmp_path: Path) -> None:
    """As a terminal sends it: to every process."""
    root = tmp_path / "stopped"
    request = ask("both", vary={"stage2.steps": [4, 4000]})
    (tmp_path / "request.json").write_text(request.model_dump_json())
    code = (
        "from pathlib import Path; from twostage.comparing import *; "
        f"request = Request.model_validate_json(Path({str(tmp_path / 'request.json')!r}).read_text()); "
        f"compare(request, {str(root)!r}, machine=Machine(workers=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)
    long = "runs/both,stage2.steps=4000/thing/seed-0"
    while process.poll() is None and not list((root / long).glob("checkpoints/stage2-*")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    last = json.loads((root / long / "metrics.jsonl").read_text().splitlines()[-1])
    assert (root / long / "checkpoints" / f"stage2-{last['step']:06d}").is_dir()
    assert "Go on with the same command" in said
    assert "resource_tracker" not in said


def test_a_run_that_fails_is_named_and_the_others_are_finished(ask: Ask, world: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text((world / "word.toml").read_text() + '[data]\ncaption = "' + "a {} " * 80 + '"')
    request = ask("word")
    request = request.model_copy(update={"recipes": (*request.recipes, str(tmp_path / "bad.toml"))})
    done = compare(request, tmp_path / "out", machine=WORKER, display=Watcher())
    assert done.failed.keys() == {"bad/thing/seed-0 training", "bad/thing/seed-0 evaluation"}
    assert [row.strategy for row in done.rows] == ["word"]
    assert "bad/thing/seed-0" in (tmp_path / "out" / "report.md").read_text()
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["failed"] == done.failed


def test_a_budget_of_seconds_is_measured_once_and_kept(ask: Ask, tmp_path: Path) -> None:
    def go() -> tuple[Comparison, Any]:
        request = ask("both", budget=Budget(kind="seconds", amount=5.0))
        done = compare(request, tmp_path / "out", machine=WORKER, display=Watcher())
        return done, json.loads((tmp_path / "out" / "compare.json").read_text())["steps"]

    done, steps = go()
    assert not done.failed
    recipe = json.loads((tmp_path / "out" / "runs" / "both" / "thing" / "seed-0" / "evaluation.json").read_text())
    assert recipe["result"]["steps"] == steps["both"]["steps"]
    assert go()[1] == steps


def test_what_cannot_work_is_told_before_anything_is_written(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    request = ask("both", overrides={"base": str(tmp_path / "empty")})
    subjects = (request.subjects[0].model_copy(update={"photos": tmp_path / "empty"}),)
    request = request.model_copy(update={"subjects": subjects})
    with pytest.raises(UserError) as error:
        compare(request, tmp_path / "out", machine=WORKER, display=Watcher())
    told = str(error.value)
    assert len(told.splitlines()) == 2
    assert "no photos in" in told
    assert "no diffusers pipeline" in told
    assert not (tmp_path / "out").exists()


def test_the_command_that_repeats_it_is_in_the_report(unbroken: Path) -> None:
    assert shlex.join(["twostage", "compare"]) in (unbroken / "report.md").read_text()
