"""What the report says in words: no more than the figures bear."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.report.comparisons import PLACES, figure, write_comparison, write_run
from twostage.report.pooling import BASE, Pool
from twostage.report.reading import read_runs
from twostage.report.tables import lines
from twostage.report.verdict import verdict

PLAIN = {"pictures": False, "curves": False}


def _pool(*folders):
    return Pool(read_runs(folders)[0])


def _with(folder, strategy, subject="dog", seed=0, drop=(), **figures):
    """A run with only these figures, each one value a prompt."""
    data = write_run(folder, strategy, subject, seed, **PLAIN)
    data["figures"] = {name: figure(name, values, PLACES) for name, values in figures.items()}
    for name in drop:
        data[name] = {}
    (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")


HARD = np.linspace(-0.2, 0.2, len(PLACES))
WOBBLE = np.tile([0.01, -0.01], len(PLACES) // 2)


def test_a_small_but_steady_lead_is_told_though_prompts_differ_more(tmp_path):
    """Pairs: what is hard for both drops out."""
    _with(tmp_path / "a", "two-stage", dino_unseen=0.63 + HARD + WOBBLE)
    _with(tmp_path / "b", "dreambooth", dino_unseen=0.60 + HARD - WOBBLE)
    pool = _pool(tmp_path)
    one, other = pool.estimate("two-stage", "dino_unseen"), pool.estimate("dreambooth", "dino_unseen")
    assert one.low < other.high  # their own intervals overlap
    gap = pool.difference("two-stage", "dreambooth", "dino_unseen")
    assert gap.value == pytest.approx(0.03) and gap.decided
    judged = verdict(pool)
    assert judged.answers[0].standing == "told" and judged.summary == "two-stage shows the subject best."
    assert lines(pool)[0].cells[0].standing == "best"


def test_where_the_interval_includes_0_it_cannot_be_told_and_nothing_is_marked_best(tmp_path):
    _with(tmp_path / "a", "two-stage", dino_unseen=0.61 + 5 * WOBBLE)
    _with(tmp_path / "b", "dreambooth", dino_unseen=0.60 - 5 * WOBBLE)
    pool = _pool(tmp_path)
    judged = verdict(pool)
    assert judged.answers[0].standing == "open"
    assert judged.summary == "On the subject, no strategy can be told from the best."
    assert {cell.standing for line in lines(pool) for cell in line.cells} == {""}


def test_those_at_the_top_share_the_lead(tmp_path):
    _with(tmp_path / "a", "two-stage", dino_unseen=0.61 + 5 * WOBBLE)
    _with(tmp_path / "b", "dreambooth", dino_unseen=0.60 - 5 * WOBBLE)
    _with(tmp_path / "c", "textual-inversion", dino_unseen=0.30 - 5 * WOBBLE)
    judged = verdict(_pool(tmp_path))
    assert judged.summary == "dreambooth and two-stage share the lead on the subject."
    assert [(gap.name, gap.told) for gap in judged.answers[0].gaps] == [
        ("dreambooth", False),
        ("textual-inversion", True),
    ]


def test_lower_is_better_where_the_figure_says_so(tmp_path):
    _with(tmp_path / "a", "two-stage", dino_unseen=0.7 + HARD, drift_class=0.3 + HARD)
    _with(tmp_path / "b", "dreambooth", dino_unseen=0.5 + HARD, drift_class=0.2 + HARD)
    judged = verdict(_pool(tmp_path))
    assert judged.summary == "two-stage shows the subject best; dreambooth forgets least of the class."
    assert "0.300" in judged.headline and "0.200" in judged.headline


def test_one_value_a_run_tells_nothing_from_two_runs(tmp_path):
    """Two seeds that agree are no interval."""
    for seed in (0, 1):
        for strategy, value in (("two-stage", 0.2), ("dreambooth", 0.1)):
            folder = tmp_path / f"{strategy}{seed}"
            data = write_run(folder, strategy, "dog", seed, **PLAIN)
            data["figures"] = {"kid": figure("kid", [value + 0.001 * seed])}
            (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    pool = _pool(tmp_path)
    assert pool.estimate("two-stage", "kid").low is None
    assert verdict(pool).answers[0].standing == "open"
    assert [gap.told for gap in verdict(pool).answers[0].gaps] == [None]


def test_runs_evaluated_in_other_ways_are_not_compared_and_the_report_says_so(tmp_path):
    _with(tmp_path / "a", "two-stage", dino_unseen=0.7 + HARD)
    _with(tmp_path / "b", "dreambooth", dino_unseen=0.5 + HARD)
    path = tmp_path / "b" / "evaluation.json"
    data = json.loads(path.read_text())
    data["choices"]["guidance_scale"] = 7.5
    path.write_text(json.dumps(data))
    pool = _pool(tmp_path)
    judged = verdict(pool)
    assert pool.difference("two-stage", "dreambooth", "dino_unseen") is None
    assert judged.answers[0].standing == "open"
    assert any("guidance_scale" in text for text in judged.cautions)


def _guided(folder, **choices):
    path = folder / "evaluation.json"
    data = json.loads(path.read_text())
    data["choices"] |= choices
    path.write_text(json.dumps(data))


def test_strategies_drawn_each_in_its_own_way_are_compared_and_the_report_says_so(tmp_path):
    _with(tmp_path / "a", "two-stage", dino_unseen=0.7 + HARD)
    _with(tmp_path / "b", "dreambooth", dino_unseen=0.5 + HARD)
    assert not any("guid" in text for text in verdict(_pool(tmp_path)).cautions)
    _guided(tmp_path / "a", class_guidance=0.5, away_from="base")
    pool = _pool(tmp_path)
    assert pool.difference("two-stage", "dreambooth", "dino_unseen") is not None
    (told,) = [text for text in verdict(pool).cautions if "guid" in text]
    assert "two-stage: 50% of the guidance towards the class and guided away from the base" in told
    assert "dreambooth: guided by the prompt alone" in told and "--class-guidance 0 --away-from own" in told


def test_runs_of_one_strategy_that_are_drawn_in_different_ways_are_named(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), "two-stage", "dog", seed, **PLAIN)
    _guided(tmp_path / "0", class_guidance=0.5)
    (told,) = [text for text in verdict(_pool(tmp_path)).cautions if "guid" in text]
    assert "Not all runs of two-stage were drawn with the same guidance" in told


def test_one_run_is_held_against_the_untouched_base(tmp_path):
    write_run(tmp_path / "a", "two-stage", "dog", 0, **PLAIN)
    pool = _pool(tmp_path / "a")
    judged = verdict(pool)
    assert pool.difference("two-stage", BASE, "dino_unseen").decided
    assert judged.summary.startswith("two-stage learned the subject: ") and "real photos" in judged.summary
    assert judged.advice == ()
    assert any("One subject, dog" in text for text in judged.cautions)
    assert any("One training seed" in text for text in judged.cautions)


def test_one_run_without_base_and_held_out_photos_says_what_is_lacking(tmp_path):
    _with(tmp_path / "a", "two-stage", dino_seen=0.7 + HARD, drop=("base", "real"))
    judged = verdict(_pool(tmp_path / "a"))
    assert "the untouched base is not known" in judged.summary
    assert any("No photo was held out" in text for text in judged.cautions)


def test_without_figures_of_identity_nothing_is_said_of_it(tmp_path):
    _with(tmp_path / "a", "two-stage", clip_t=0.3 + HARD / 10)
    judged = verdict(_pool(tmp_path / "a"))
    assert [answer.question for answer in judged.answers] == ["Follows the prompt"]
    assert any("not measured" in text for text in judged.cautions)


def test_a_strategy_that_lacks_a_subject_is_compared_on_the_others_and_that_is_said(tmp_path):
    write_comparison(tmp_path, ["two-stage", "dreambooth"], ["dog", "teapot"], [0], **PLAIN)
    (tmp_path / "runs" / "dreambooth-teapot-0" / "evaluation.json").unlink()
    pool = _pool(tmp_path)
    assert pool.difference("two-stage", "dreambooth", "dino_unseen").runs == 1
    assert any("Not every strategy" in text for text in verdict(pool).cautions)


def test_easy_subjects_make_no_leader(tmp_path):
    """One strategy has an easy subject more; where both were run, the other is better."""
    _with(tmp_path / "a", "two-stage", "dog", dino_unseen=0.5 + HARD)
    _with(tmp_path / "b", "two-stage", "teapot", dino_unseen=0.9 + HARD)
    _with(tmp_path / "c", "dreambooth", "dog", dino_unseen=0.6 + HARD)
    judged = verdict(_pool(tmp_path))
    assert judged.summary == "dreambooth shows the subject best."


def test_costs_name_the_least_and_the_most(tmp_path):
    write_comparison(tmp_path, subjects=["dog"], seeds=[0], **PLAIN)
    judged = verdict(_pool(tmp_path))
    assert any(line.startswith("Result on disk: from 3.1 kB (textual-inversion) to 43.8 MB") for line in judged.costs)
    assert ("Time is short", "textual-inversion") in [(one.wish, one.take) for one in judged.advice]


def test_the_pareto_front_leaves_out_what_is_beaten_on_both(tmp_path):
    for name, up, across in (
        ("two-stage", 0.7, 0.28),
        ("dreambooth", 0.6, 0.30),
        ("two-stage-lora", 0.55, 0.29),
        ("textual-inversion", 0.6, 0.30),
    ):
        _with(tmp_path / name, name, dino_unseen=up + HARD, clip_t=across + HARD / 10)
    front = _pool(tmp_path).front("clip_t", "dino_unseen")
    assert front[0] == "two-stage" and set(front[1:]) == {"dreambooth", "textual-inversion"}
