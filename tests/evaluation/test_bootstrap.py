"""Intervals of means, and of differences on the same cells."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from twostage.evaluation import bootstrap
from twostage.evaluation.bootstrap import hierarchical, interval, paired_difference


def test_the_interval_is_that_of_all_resamples_of_two_values() -> None:
    """Of (0, 1) a quarter of the resamples have mean 0, half 0.5 and a quarter 1."""
    assert interval([0, 1]) == (0, 1)
    assert interval([0, 1], level=0.4) == (0.5, 0.5)


def test_it_agrees_with_every_resample_counted() -> None:
    values = [0.1, 0.5, 0.6, 0.9]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    exact = np.quantile(means, [0.025, 0.975])
    assert interval(values, resamples=20_000) == pytest.approx(exact, abs=0.03)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = list(np.random.default_rng(1).random(12))
    cells = {(subject, seed): values[seed : seed + 8] for subject in "ab" for seed in range(3)}
    assert interval(values) == interval(values) != interval(values, seed=1)
    assert hierarchical(cells) == hierarchical(dict(reversed(cells.items()))) != hierarchical(cells, seed=1)


def test_constant_values_have_an_interval_of_no_width() -> None:
    assert interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    estimate = hierarchical({("a", 0): [0.3] * 5, ("b", 0): [0.3] * 2})
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.3, 0.3, 0.3))


def test_the_mean_gives_every_subject_the_same_weight() -> None:
    cells = {("a", 0): [1.0, 1.0, 1.0], ("a", 1): [0.0], ("b", 0): [0.0]}
    assert hierarchical(cells).value == pytest.approx(0.25)


def test_of_one_cell_it_is_the_interval_over_its_prompts() -> None:
    values = [0.1, 0.4, 0.5, 0.8, 0.9]
    estimate = hierarchical({("a", 0): values}, resamples=20_000)
    assert (estimate.low, estimate.high) == pytest.approx(interval(values, resamples=20_000), abs=0.02)


def test_subjects_that_differ_make_it_wider_than_their_prompts_would() -> None:
    cells = {("a", 0): [0.0] * 20, ("b", 0): [1.0] * 20}
    estimate = hierarchical(cells)
    assert (estimate.low, estimate.high) == (0, 1)
    low, high = interval([0.0] * 20 + [1.0] * 20)
    assert high - low < 0.4


def test_further_seeds_of_the_same_prompts_are_no_further_prompts() -> None:
    values = [0.1, 0.4, 0.5, 0.8, 0.9]
    estimate = hierarchical({("a", seed): values for seed in range(5)}, resamples=20_000)
    assert (estimate.low, estimate.high) == pytest.approx(interval(values, resamples=20_000), abs=0.02)


def test_places_that_are_not_there_are_never_drawn() -> None:
    cells = {("a", 0): [1.0] * 9, ("a", 1): [1.0], ("b", 0): [1.0, 1.0]}
    estimate = hierarchical(cells)
    assert (estimate.low, estimate.high) == pytest.approx((1, 1))


def test_a_paired_difference_sees_what_the_spread_of_the_prompts_would_hide() -> None:
    rng = np.random.default_rng(0)
    b = {(subject, seed): list(rng.random(10)) for subject in "abc" for seed in range(2)}
    a = {key: [value + 0.05 for value in values] for key, values in b.items()}
    found = paired_difference(a, b)
    assert (found.value, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert found.share == 1
    assert paired_difference(b, a).share == 0
    assert paired_difference(a, a).share == 0.5


def test_only_cells_of_both_are_compared() -> None:
    a = {("a", 0): [1.0, 1.0], ("b", 0): [5.0, 5.0]}
    b = {("a", 0): [0.0, 0.5], ("c", 0): [5.0, 5.0]}
    assert paired_difference(a, b).value == pytest.approx(0.75)


def test_it_needs_no_torch() -> None:
    code = "import sys, twostage.evaluation.bootstrap; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_interval_of_thousands_of_values_is_drawn_some_resamples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=20_000).tolist()
    tracemalloc.start()
    found = interval(values, resamples=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * 8 * bootstrap._VALUES
    monkeypatch.setattr(bootstrap, "_VALUES", 200 * len(values))
    assert interval(values, resamples=200) == found
