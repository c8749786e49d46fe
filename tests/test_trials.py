"""The trials behind the default recipe: a trial is measured where asked, done once, and the guard can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.trials.candidates import CANDIDATES, NO_PRIOR, OURS, PRIOR, REDRAWN, TESTED
from benchmarks.trials.carrying_out import Candidate, Job, Trials
from benchmarks.trials.drawing import guided
from benchmarks.trials.front import COLOURS, OTHER, front, kind_of
from benchmarks.trials.measuring import EDITS, questionnaire
from benchmarks.trials.options import class_consistency
from benchmarks.trials.style import off_the_inks, printed
from benchmarks.trials.subjects import TEST, TUNING, UNSEEN
from benchmarks.trials.tables import SHOWN, claim, named, pool, put, show, show_claim, standing
from twostage.pocket import world
from twostage.recipe_file import load_recipe


def record(folder: Path, name: str, noun: str, **figures: float) -> Path:
    """As a trial would have left it."""
    usual = dict.fromkeys(set(SHOWN) - {"score", "seconds"}, 0.5) | figures
    values: dict[str, Any] = {figure: [value, value + 0.01] for figure, value in usual.items()}
    file = folder / f"{name}-{noun}.json"
    job = {"candidate": name, "class_noun": noun, "individual": 1, "seed": 0}
    file.write_text(json.dumps({"job": job, "points": [{"stage": 2, "step": 9, "seconds": 3.0, "figures": values}]}))
    return file


def test_settings_are_chosen_on_others_than_they_are_tested_on() -> None:
    assert set(TEST) == set(world.CLASSES)
    assert not set(TUNING.values()) & set(TEST.values())
    names = [candidate.name for candidate in [*CANDIDATES, *TESTED, *REDRAWN]]
    assert len(names) == len(set(names))
    for candidate in CANDIDATES:
        assert {candidate.parent, candidate.after} <= {*names, None}


def test_what_is_tested_is_what_ships() -> None:
    """Nothing is set for `two-stage` and DreamBooth with prior that a user would not get."""
    assert (OURS.recipe, OURS.options) == ("two-stage", {})
    assert (PRIOR.recipe, PRIOR.options) == ("dreambooth", {})
    assert set(NO_PRIOR.options) == {"prior.preserve", "stage2.learning_rate"}
    ours = load_recipe("two-stage", base="pocket")
    assert ours.prior.source == "photos"  # No prior images.


@pytest.mark.parametrize("noun", world.CLASSES)
def test_every_result_is_asked_the_same(noun: str) -> None:
    asked = questionnaire(noun)
    assert len(asked) == 40
    assert sum(one.group == "context" for one in asked) == 2 * len(UNSEEN)
    assert all("{}" in one.template for one in asked if one.group in ("context", "edit"))
    assert not any(noun in one.template for one in asked if one.group == "unrelated")
    assert {one.template for one in asked if one.group == "edit"} == set(EDITS)


def test_a_trial_is_measured_where_asked_and_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a parent's token and an option that the package has not; untrained, the class is where the base has it."""
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path / "cache"))
    parent = Candidate("parent", "textual-inversion", {"token.role": "adjective", "stage1.batch_size": 1}, at=(1,))
    options = {"stage2.batch_size": 1, "stage2.learning_rate": 1e-9, "prior.preserve": False}
    child = Candidate("child", "two-stage", options, (1, 2), "parent", class_consistency())
    redrawn = Candidate("redrawn", after="child", drawing=guided(), subject_only=True)
    trials = Trials(tmp_path / "trials", [parent, child, redrawn])
    job = Job("child", "toy car", 1, 0)
    trials.do(job)
    points = json.loads(trials.record(job).read_text())["points"]
    assert [(point["stage"], point["step"]) for point in points] == [(2, 1), (2, 2)]
    assert 0 < points[0]["seconds"] < points[1]["seconds"]
    figures = points[1]["figures"]
    assert max(figures["drift_class"] + figures["drift_unrelated"]) < 1e-3
    assert {name: len(values) for name, values in figures.items()} == {
        "dino_unseen": 9, "dino_seen": 9, "copying": 9, "diversity": 9, "dpres": 8, "drift_class": 8,
        "drift_unrelated": 8, "clip_t": 15, "context_read": 18, "class_read": 18, "edit_read": 4,
    }  # fmt: skip
    assert trials.record(Job("parent", "toy car", 1, 0)).exists()
    assert len(trials.drawn(job)) == 40
    trials.do(Job("redrawn", "toy car", 1, 0))
    (other,) = json.loads(trials.record(Job("redrawn", "toy car", 1, 0)).read_text())["points"]
    # Only the subject is drawn anew, by its prompt alone.
    assert all(other["figures"][name] == figures[name] for name in ("drift_class", "drift_unrelated", "dpres"))
    assert all(other["figures"][name] != figures[name] for name in ("dino_unseen", "clip_t", "diversity"))
    before = trials.record(job).stat().st_mtime_ns
    trials.do(job)
    assert trials.record(job).stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", [claim, standing])
def test_the_guard_fails_when_the_order_breaks(kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"dino_unseen": 0.7, "clip_t": 0.7, "drift_class": 0.2, "drift_unrelated": 0.2}

    def met(**ours: float) -> bool:
        records = []
        for noun in ("cat", "dog", "owl"):
            records.append(record(tmp_path, "two-stage", noun, **{**good, **ours}))
            records += [record(tmp_path, name, noun) for name in ("dreambooth", "dreambooth-no-prior")]
        pooled = pool(records)
        terms = kind("dreambooth @9", "dreambooth-no-prior @9")
        return show_claim(pooled, named(pooled, "two-stage"), [term for term in terms if term.figure != "seconds"])

    assert met()
    assert "NO" not in capsys.readouterr().out
    for broken in ({"dino_unseen": 0.4}, {"clip_t": 0.4}, {"drift_class": 0.6}, {"drift_unrelated": 0.6}):
        assert not met(**broken), broken
        assert "NO" in capsys.readouterr().out


def test_the_table_has_an_interval_for_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [record(tmp_path, "one", noun, dino_unseen=place / 10) for place, noun in enumerate(("cat", "dog", "owl"))]
    table = show([*files, tmp_path / "missing.json"])["one @9"]
    assert set(table) == {"runs", *SHOWN}
    value, low, high = table["dino_unseen"]
    assert low < value < high
    assert "| one @9 | 3 |" in capsys.readouterr().out


def test_a_table_leaves_the_others_of_its_file_alone(tmp_path: Path) -> None:
    (tmp_path / "tables.json").write_text('{"machine": "two cores"}')
    for name, table in (
        ("tuning", {"a": {"runs": 1}}),
        ("test", {"b": {"score": [0.1, 0.0, 0.2]}}),
        ("test", {"c": {}}),
    ):
        put(tmp_path / "tables.json", name, table)
    written = json.loads((tmp_path / "tables.json").read_text())
    assert written == {"machine": "two cores", "tuning": {"a": {"runs": 1}}, "test": {"c": {}}}


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(0.0, 0.2), (0.3, 0.7), (0.3, 0.6), (0.5, 0.65), (0.9, 0.75)]
    assert front(points[::-1]) == [(0.0, 0.2), (0.3, 0.7), (0.9, 0.75)]
    names = [candidate.name for candidate in CANDIDATES]  # What the table of the picture holds.
    assert {kind_of(name) for name in names if not name.startswith(OTHER)} == set(COLOURS)


def test_a_style_s_own_pictures_lie_on_its_inks() -> None:
    picture = world.draw(
        world.sample_subject(np.random.default_rng(1), "cat"), world.sample_scene(np.random.default_rng(2), True)
    )
    assert off_the_inks(printed(picture, "rust"), "rust") < 0.005
    assert off_the_inks(printed(picture, "rust"), "blueprint") > 0.1
    assert off_the_inks(picture, "rust") > 0.1
