"""Which runs a report is made of, and what is said of the others."""

from __future__ import annotations

import json

import pytest

from tests.report.comparisons import write_comparison, write_run
from twostage.report.reading import read_runs, same_choices

PLAIN = {"pictures": False, "curves": False}


def _change(folder, **changes):
    path = folder / "evaluation.json"
    data = json.loads(path.read_text())
    for name, value in changes.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_comparison_a_folder_of_runs_and_a_run_are_all_found_once(tmp_path):
    write_comparison(tmp_path / "comparison", ["two-stage", "dreambooth"], ["dog"], [0], **PLAIN)
    write_run(tmp_path / "loose" / "deep" / "x", "two-stage-lora", "dog", 0, **PLAIN)
    given = [tmp_path / "comparison", tmp_path / "loose", tmp_path / "comparison" / "runs" / "dreambooth-dog-0"]
    runs, skipped = read_runs(given)
    assert sorted(run.strategy for run in runs) == ["dreambooth", "two-stage", "two-stage-lora"]
    assert skipped == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": 1, "res', "cannot be read"),
        ("[]", "broken"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1, "result": {"name": "x"}, "figures": {}}', "no figures"),
        ('{"format": 1, "result": {"name": "x"}, "figures": []}', "no figures"),
        ('{"format": 1, "result": {"name": "x"}, "figures": 3}', "broken at figures"),
        ('{"format": 1, "result": {"name": "x"}, "figures": {"a": {"values": 3}}, "base": [1]}', "broken at"),
        ('{"format": 1, "result": {"name": "x"}, "figures": {"a": {"values": 3}}, "left_out": "x"}', "broken at"),
        ('{"format": 1, "result": {"name": "x"}, "figures": {"a": {"title": "A"}}}', "broken at figures.a.value"),
    ],
)
def test_a_broken_run_among_many_is_named_and_the_rest_is_read(tmp_path, text, reason):
    write_comparison(tmp_path, ["two-stage", "dreambooth"], ["dog"], [0], **PLAIN)
    broken = tmp_path / "runs" / "dreambooth-dog-0"
    (broken / "evaluation.json").write_text(text)
    runs, (skipped,) = read_runs([tmp_path])
    assert [run.strategy for run in runs] == ["two-stage"]
    assert skipped.folder == broken and reason in skipped.reason and "\n" not in skipped.reason


def test_runs_begun_and_not_evaluated_are_named(tmp_path):
    write_comparison(tmp_path, ["two-stage"], ["dog"], [0], **PLAIN)
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "trained").mkdir()
    (tmp_path / "runs" / "trained" / "run.json").write_text("{}")
    runs, skipped = read_runs([tmp_path, tmp_path / "nowhere"])
    assert len(runs) == 1
    assert [one.folder.name for one in skipped] == ["empty", "trained", "nowhere"]


def test_a_figure_that_is_nan_is_left_out_with_the_reason_and_the_run_stays(tmp_path):
    write_run(tmp_path / "a", "two-stage", "dog", 0, **PLAIN)
    path = tmp_path / "a" / "evaluation.json"
    data = json.loads(path.read_text())
    data["figures"]["clip_t"]["values"][3] = float("nan")
    path.write_text(json.dumps(data))
    (run,), skipped = read_runs([tmp_path / "a"])
    assert skipped == [] and "dino_unseen" in run.document.figures
    assert "clip_t" not in run.document.figures and run.document.left_out["clip_t"] == "not a number"


def test_runs_of_one_name_on_one_subject_and_seed_are_told_apart_by_folder(tmp_path):
    for place in ("x/short", "x/long", "y/long"):
        write_run(tmp_path / place, "two-stage", "dog", 0, **PLAIN)
    runs, _ = read_runs([tmp_path])
    assert len({run.strategy for run in runs}) == 3
    assert "two-stage (x/short)" in {run.strategy for run in runs}


def test_other_samplers_cannot_be_compared_and_another_class_prompt_can(tmp_path):
    for name in "abc":
        write_run(tmp_path / name, "two-stage", "dog", 0, **PLAIN)
    _change(tmp_path / "b", choices={"num_inference_steps": 50})
    _change(tmp_path / "c", choices={"class_prompt": "a picture of a dog"})
    a, b, c = read_runs([tmp_path])[0]
    assert not same_choices(a, b) and same_choices(a, c)
