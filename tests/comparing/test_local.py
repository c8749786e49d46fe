"""Workers on this machine: the death of one costs nothing that is finished, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comparing.chores import Die, Fail, LoadSlowly, Tell, Wait
from twostage.comparing.carry_out import carry_out
from twostage.comparing.engine import Ended, Work
from twostage.comparing.jobs import Job
from twostage.comparing.local import LocalEngine
from twostage.comparing.place import Place
from twostage.display import Display
from twostage.errors import UserError


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(2, retries=1)
    yield engine
    engine.close()


def all_of(engine: LocalEngine, count: int) -> dict[str, Ended]:
    found: dict[str, Ended] = {}
    while len(found) < count:
        found |= {ended.name: ended for ended in engine.ended(1.0)}
    return found


def test_a_worker_that_is_killed_is_replaced_and_the_other_goes_on(engine: LocalEngine, tmp_path: Path) -> None:
    engine.submit(Work("dies", Die(tmp_path / "count", times=1), 1))
    engine.submit(Work("tells", Tell(), 1))
    ended = all_of(engine, 2)
    assert ended["dies"].told == {"died": 1}
    told = ended["tells"].told
    assert told and told["threads"] == 1
    engine.submit(Work("again", Tell(), 2))
    engine.submit(Work("more", Tell(), 2))
    pids = {end.told["pid"] for end in all_of(engine, 2).values() if end.told}
    assert told["pid"] in pids  # That worker has seen nothing of it, and is asked again.


def test_a_worker_that_dies_each_time_is_given_up(engine: LocalEngine, tmp_path: Path) -> None:
    engine.submit(Work("dies", Die(tmp_path / "count", times=100), 1))
    error = all_of(engine, 1)["dies"].error
    assert "died 2 times" in str(error)
    assert (tmp_path / "count").read_text() == "2"


def test_each_gpu_has_a_worker_that_sees_no_other() -> None:
    engine = LocalEngine(2, ["3", "GPU-abc"])
    assert engine.free == 2
    for name in "ab":
        engine.submit(Work(name, Tell(), 1))
    told = [ended.told for ended in all_of(engine, 2).values()]
    engine.close()
    assert sorted(facts["gpu"] for facts in told if facts) == ["3", "GPU-abc"]


@pytest.mark.parametrize("task", [Wait, LoadSlowly])
def test_a_worker_ends_without_a_word_when_it_is_asked_to(
    task: type[Wait | LoadSlowly], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = LocalEngine(1)
    engine.submit(Work("waits", task(tmp_path / "begun"), 1))
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    engine.stop()
    assert isinstance(all_of(engine, 1)["waits"].error, KeyboardInterrupt)
    engine.close()
    assert "Traceback" not in capfd.readouterr().err


def job(name: str, task: object, *after: str, behind: tuple[str, ...] = ()) -> Job:
    return Job(name, name, task, 1.0, after, behind)


def test_what_fails_is_named_and_what_waits_for_it_left_out(engine: LocalEngine, tmp_path: Path) -> None:
    jobs = [
        job("mistake", Fail(foreseen=True)),
        job("bug", Fail(foreseen=False)),
        job("needs", Tell(), "mistake"),
        job("follows", Tell(), behind=("bug",)),
        job("fine", Tell()),
    ]
    outcomes = carry_out(jobs, engine, 1, Place(str(tmp_path)), Display())
    assert outcomes.told.keys() == {"follows", "fine"}
    assert outcomes.failed["mistake"] == "a mistake in two lines"
    assert outcomes.failed["needs"] == "left out, since mistake failed"
    assert outcomes.failed["bug"].startswith("ZeroDivisionError: a bug (see ")
    assert "raise UserError" in (tmp_path / "errors" / "bug.txt").read_text()


def test_a_mistake_comes_back_as_it_was_raised(engine: LocalEngine) -> None:
    engine.submit(Work("mistake", Fail(foreseen=True), 1))
    assert isinstance(all_of(engine, 1)["mistake"].error, UserError)
