"""The row of real photos."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from twostage.evaluation.material import Material, Shots
from twostage.evaluation.real import real_row


def test_held_out_photos_stand_for_pictures(material: Callable[..., Material], taken: Callable[..., Shots]) -> None:
    row = {figure.name: figure for figure in real_row(material(seen=taken("red", "blue"), unseen=taken("red", "red")))}
    assert row["dino_seen"].value == row["dino_unseen"].value == pytest.approx(0.5)
    assert row["copying"].value == pytest.approx(1)
    assert "held-out" in row["clip_i_unseen"].title


def test_where_nothing_is_held_out_training_photos_stand_for_each_other_but_none_for_itself(
    material: Callable[..., Material], taken: Callable[..., Shots]
) -> None:
    row = {figure.name: figure for figure in real_row(material(seen=taken("red", "red", "blue")))}
    assert list(row) == ["dino_seen", "dinov2_seen", "clip_i_seen"]
    assert row["dino_seen"].value == pytest.approx(1 / 3)
    assert row["dino_seen"].title == "DINO, training photos with each other"


def test_a_single_photo_has_no_row(material: Callable[..., Material], taken: Callable[..., Shots]) -> None:
    assert real_row(material(seen=taken("red"))) == []
