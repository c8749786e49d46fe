"""What the model forgot: PRES, seed-paired drift and KID."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from twostage.evaluation.figures import LeftOut
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics import all_figures, measure
from twostage.evaluation.metrics.kid import kid

FIGURES = all_figures()


def test_pres_rises_where_the_class_looks_like_the_subject(
    material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = {"class": drawn(("red", "red", "blue", "blue")), "base_class": drawn(("red", "blue", "blue", "blue"))}
    given = material(**given, seen=taken("red", "red"))
    assert FIGURES["pres"](given).values == pytest.approx([1, 1, 0, 0])
    assert FIGURES["dpres"](given).values == pytest.approx([0, 1, 0, 0])


def test_drift_compares_pictures_of_the_same_seed(
    material: Callable[..., Material], drawn: Callable[..., Shots]
) -> None:
    given = {
        "class": drawn(("red", "blue")),
        "base_class": drawn(("blue", "red")),
        "unrelated": drawn(("red",), ("yellow",)),
        "base_unrelated": drawn(("red",), ("green",)),
    }
    given = material(**given)
    assert FIGURES["drift_class"](given).values == pytest.approx([1, 1])
    assert FIGURES["drift_unrelated"](given).values == pytest.approx([0, 1 - 0.5**0.5])


def test_kid_is_the_unbiased_estimate_of_its_equation() -> None:
    x, y = (torch.nn.functional.normalize(torch.randn(n, 6), dim=1) for n in (4, 3))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a * 6**0.5, b * 6**0.5  # of length sqrt(D)
        return (float(a @ b) / 6 + 1) ** 3

    within = [sum(kernel(a, b) for a, b in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (x, y)]
    across = sum(kernel(a, b) for a in x for b in y) / 12
    assert kid(x, y) == pytest.approx(sum(within) - 2 * across, abs=1e-5)


def test_kid_by_hand(material: Callable[..., Material], drawn: Callable[..., Shots]) -> None:
    same, apart = drawn(("red", "red")), drawn(("blue", "blue"))
    # k = (1 + 1)^3 of pictures alike and (0 + 1)^3 at right angles.
    assert FIGURES["kid"](material(**{"class": same, "base_class": apart})).value == pytest.approx(8 + 8 - 2)
    assert FIGURES["kid"](material(**{"class": same, "base_class": drawn(("red", "red"))})).value == pytest.approx(0)


def test_kid_of_few_pictures_is_not_biased() -> None:
    """Samples of one distribution are at distance 0 on average, however few."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.nn.functional.normalize(torch.randn(400, 2, 3, 8, generator=generator), dim=-1)
    scores = torch.tensor([kid(x, y) for x, y in samples])
    assert abs(float(scores.mean())) < 3 * float(scores.std()) / 400**0.5


def test_the_base_has_not_forgotten_anything(
    material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = {"class": drawn(("red", "blue")), "base_class": drawn(("blue", "blue"))}
    given |= {"unrelated": drawn(("red",)), "base_unrelated": drawn(("green",)), "base_subject": drawn(("green",))}
    figures, left_out = measure(material(subject=drawn(("red",)), seen=taken("red"), **given).of_base())
    values = {figure.name: figure.value for figure in figures}
    assert values["drift_class"] == values["drift_unrelated"] == values["dpres"] == pytest.approx(0)
    assert values["dino_seen"] == 0
    assert "none from itself" in left_out["kid"]


def test_without_a_base_there_is_no_drift(
    material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = material(**{"class": drawn(("red", "red")), "seen": taken("red")})
    assert FIGURES["pres"](given).value == pytest.approx(1)
    for name in ("dpres", "drift_class", "kid"):
        with pytest.raises(LeftOut, match="--base"):
            FIGURES[name](given)
