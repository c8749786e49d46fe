"""Whether training photos are given back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics.copying import FIGURES


def test_only_the_nearest_training_photo_counts(
    material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = material(
        subject=drawn(("red", "yellow"), ("blue", "blue")), seen=taken("red", "green"), unseen=taken("blue")
    )
    half = 0.5**0.5
    assert FIGURES["copying"](given).values == pytest.approx([(1 + half) / 2, 0])
    # Of 0, 0, 0.71 and 1 the 95th percentile lies at 2.85, counted from 0.
    assert FIGURES["copying_p95"](given).value == pytest.approx(half + 0.85 * (1 - half))
    assert FIGURES["overfit_gap"](given).values == pytest.approx([(0.5 + half) / 2, -1])
