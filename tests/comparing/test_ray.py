"""The same comparison on Ray: real workers, started on this machine. Needs the extra "cluster"."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comparing.chores import Die, Fail, Tell
from tests.watching import Watcher
from twostage.comparing import Machine, Request, compare
from twostage.comparing.carry_out import carry_out
from twostage.comparing.jobs import Job
from twostage.comparing.place import Place
from twostage.comparing.ray_cluster import RayEngine
from twostage.display import Display
from twostage.errors import UserError

pytest.importorskip("ray")
Ask = Callable[..., Request]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayEngine]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # Where workers find these tasks.
    engine = RayEngine(None, 2, 1)
    yield engine
    engine.close()


def test_a_worker_that_is_killed_is_retried_and_what_fails_is_named(engine: RayEngine, tmp_path: Path) -> None:
    jobs = [
        Job("dies", "dies", Die(tmp_path / "count", times=2), 1.0),
        Job("mistake", "mistake", Fail(foreseen=True), 1.0),
        Job("bug", "bug", Fail(foreseen=False), 1.0),
        Job("needs", "needs", Tell(), 1.0, ("mistake",)),
        Job("tells", "tells", Tell(), 1.0, ("dies",)),
    ]
    outcomes = carry_out(jobs, engine, 1, Place(str(tmp_path)), Display())
    assert outcomes.told["dies"] == {"died": 2}
    assert outcomes.told["tells"]["threads"] == 1
    assert outcomes.failed["mistake"] == "a mistake in two lines"
    assert outcomes.failed["bug"].startswith("ZeroDivisionError: a bug")
    assert outcomes.failed["needs"] == "left out, since mistake failed"


def test_a_worker_that_dies_each_time_is_given_up(engine: RayEngine, tmp_path: Path) -> None:
    jobs = [Job("dies", "dies", Die(tmp_path / "count", times=100), 1.0)]
    outcomes = carry_out(jobs, engine, 1, Place(str(tmp_path)), Display())
    assert "its worker died too often" in outcomes.failed["dies"]


def test_a_cluster_that_is_not_there_is_told_in_a_line() -> None:
    with pytest.raises(UserError, match="there is no Ray cluster at auto") as error:
        RayEngine("auto", 1, 1)
    assert "\n" not in str(error.value)


def figures(root: Path) -> dict[str, Any]:
    """Every value of every figure of every run."""
    found = {}
    for file in sorted((root / "runs").rglob("evaluation.json")):
        record = json.loads(file.read_text())
        found[file.parent.relative_to(root).as_posix()] = {row: record[row] for row in ("figures", "base", "real")}
    return found


def test_two_ray_workers_come_to_the_figures_of_the_local_engine_in_a_folder_and_behind_an_address(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask("both", "adapted", "word")
    places = {"local": str(tmp_path / "local"), "ray": str(tmp_path / "ray"), "far": f"local://{tmp_path}/far"}
    for name, output in places.items():
        monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path / f"cache-{name}"))
        machine = Machine(workers=2, engine="local" if name == "local" else "ray")
        done = compare(request, output, machine=machine, display=Watcher())
        assert not done.failed
    local, ray, far = (figures(tmp_path / name) for name in places)
    assert len(local) == 3
    assert local == ray == far
    assert (tmp_path / "far" / "report.html").is_file()
