"""Comparisons from beginning to end, also when they are killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.watching import Watcher
from twostage.comparing import Budget, Machine, Request, compare
from twostage.comparing.budget import steps_within
from twostage.comparing.comparison import steps_of_budget
from twostage.comparing.local import LocalEngine
from twostage.comparing.place import Place
from twostage.comparing.plan import plan_cells, plan_variants
from twostage.comparing.record import Record
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
    return ask("both", vary={"stage2.steps": [2, 4]})


@pytest.fixture(scope="module")
def unbroken(request_of_two: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two rows; never write to it."""
    root = tmp_path_factory.mktemp("comparisons") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTAGE_CACHE", str(root.parent / "cache"))
        done = compare(request_of_two, root, machine=WORKER, command="twostage compare", display=Watcher())
    assert not done.failed
    return root


def test_each_row_is_trained_evaluated_and_reported(unbroken: Path) -> None:
    record = json.loads((unbroken / "compare.json").read_text())
    assert set(figures(unbroken)) == {f"runs/{name}" for name in record["cells"]}
    assert len(record["cells"]) == 2
    for name in ("report.html", "report.md", "report.json", "report.csv"):
        assert (unbroken / name).stat().st_size
    told = (unbroken / "report.md").read_text()
    assert "both stage2.steps 2" in told
    assert "twostage compare" in told
    assert not list(unbroken.glob("runs/*/*/*/checkpoints/*"))
    assert not list(unbroken.glob("runs/*/*/*/samples"))


def test_the_same_request_again_changes_nothing_and_another_is_refused(request_of_two: Request, unbroken: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (unbroken / "runs").rglob("*")}
    watcher = Watcher()
    done = compare(request_of_two, unbroken, machine=WORKER, display=watcher)
    assert "2 of 2 runs are finished already" in watcher.said
    assert len(done.rows) == 2
    assert {path: path.stat().st_mtime_ns for path in (unbroken / "runs").rglob("*")} == before
    other = request_of_two.model_copy(update={"seeds": (0, 1)})
    with pytest.raises(UserError, match=r"holds another comparison: seeds \(\[0\], now \[0, 1\]\).*twostage compare"):
        compare(other, unbroken, machine=WORKER, display=Watcher())


def test_a_comparison_stopped_and_killed_ends_with_the_same_figures(
    request_of_two: Request, unbroken: Path, tmp_path: Path
) -> None:
    """Ctrl-C comes as a terminal sends it, to every process; and so does the kill, which saves nothing."""
    root = tmp_path / "killed"
    (tmp_path / "request.json").write_text(request_of_two.model_dump_json())
    code = (
        "from pathlib import Path; from twostage.comparing import *; "
        f"request = Request.model_validate_json(Path({str(tmp_path / 'request.json')!r}).read_text()); "
        f"compare(request, {str(root)!r}, machine=Machine(workers=1))"
    )
    for moment, number in (
        ("runs/*/*/*/checkpoints/stage2-*", signal.SIGINT),
        ("runs/*/*/*/evaluation/subject/*.png", signal.SIGKILL),
    ):
        process = subprocess.Popen(
            [sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not list(root.glob(moment)):
            time.sleep(0.01)
        assert process.poll() is None, f"it ended before {moment} was seen"
        os.killpg(process.pid, number)
        _, said = process.communicate()
        if number == signal.SIGINT:
            assert "Go on with the same command" in said
            assert "resource_tracker" not in said
    done = compare(request_of_two, root, machine=WORKER, display=Watcher())
    assert not done.failed
    assert figures(root) == figures(unbroken)


def test_a_run_that_fails_is_named_and_the_others_are_finished_with_the_steps_measured_before(
    ask: Ask, world: Path, tmp_path: Path
) -> None:
    bad = (world / "word.toml").read_text().replace("[prior]", '[prior]\nclass_prompt = "a sks"')
    (tmp_path / "bad.toml").write_text(bad)
    request = ask("word", budget=Budget(kind="seconds", amount=5.0))
    request = request.model_copy(update={"recipes": (*request.recipes, str(tmp_path / "bad.toml"))})
    steps = {name: {"steps": {"stage2": 3}} for name in ("word", "bad")}
    place = Place(str(tmp_path / "out"))
    Record(place).update(request=request.model_dump(mode="json"), steps=steps)
    done = compare(request, tmp_path / "out", machine=WORKER, display=Watcher())
    assert done.failed.keys() == {"bad/thing/seed-0 training", "bad/thing/seed-0 evaluation"}
    assert [row.strategy for row in done.rows] == ["word"]
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (record["failed"], record["steps"]) == (done.failed, steps)
    found = json.loads(place.read("runs/word/thing/seed-0/evaluation.json") or "")
    assert found["result"]["steps"] == {"stage2": 3}


def test_a_budget_of_seconds_is_shared_by_what_was_measured(ask: Ask, tmp_path: Path) -> None:
    request, place = ask("both", budget=Budget(kind="seconds", amount=1000.0)), Place(str(tmp_path))
    cells, engine = plan_cells(request, plan_variants(request)), LocalEngine(1)
    steps = steps_of_budget(request, cells, engine, 1, place, Watcher())["both"]
    engine.close()
    assert steps["steps"]["stage1"] == pytest.approx(1.5 * steps["steps"]["stage2"], rel=0.1)
    assert steps["steps"] == steps_within(cells[0].recipe, 1000.0, steps["measured"])


def test_what_cannot_work_is_told_before_anything_is_written(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    request = ask("both", overrides={"base": str(tmp_path / "empty")})
    subjects = (request.subjects[0].model_copy(update={"photos": tmp_path / "empty"}),)
    encoders = request.evaluation.model_copy(update={"encoders": ("dion=pocket",)})
    request = request.model_copy(update={"subjects": subjects, "evaluation": encoders})
    with pytest.raises(UserError) as error:
        compare(request, tmp_path / "out", machine=WORKER, display=Watcher())
    told = str(error.value)
    assert len(told.splitlines()) == 3
    assert "no photos in" in told
    assert "did you mean dino?" in told
    assert "no diffusers pipeline" in told
    assert not (tmp_path / "out").exists()
