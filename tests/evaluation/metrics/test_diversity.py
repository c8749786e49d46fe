"""How much pictures of one prompt differ."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

from twostage.evaluation.figures import LeftOut
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics import diversity, diversity_lpips


def test_only_pictures_of_one_prompt_are_compared(
    material: Callable[..., Material], drawn: Callable[..., Shots]
) -> None:
    given = material(subject=drawn(("red", "red", "blue"), ("green", "green")))
    # Of three pairs, one is alike and two are at right angles.
    assert diversity.FIGURES["diversity"](given).values == pytest.approx([2 / 3, 0])


@pytest.mark.parametrize("figures", [diversity.FIGURES, diversity_lpips.FIGURES])
def test_one_picture_of_a_prompt_has_no_diversity(
    figures: dict[str, Callable[[Material], object]], material: Callable[..., Material], drawn: Callable[..., Shots]
) -> None:
    (figure,) = figures.values()
    with pytest.raises(LeftOut, match="--images-per-prompt 2"):
        figure(material(subject=drawn(("red", "red"), ("green",))))


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="lpips is installed")
def test_without_the_library_lpips_is_left_out_with_what_to_install(
    material: Callable[..., Material], drawn: Callable[..., Shots]
) -> None:
    with pytest.raises(LeftOut, match="pip install lpips"):
        diversity_lpips.FIGURES["diversity_lpips"](material(subject=drawn(("red", "red"))))
