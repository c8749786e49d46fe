"""What the words of a command line ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twostage.comparing.request import (
    Asked,
    Budget,
    read_budget,
    read_request,
    read_seeds,
    read_settings,
    read_subject,
)
from twostage.errors import UserError
from twostage.recipe_evaluation import Evaluation


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("stage2.learning_rate=1e-6,2e-6", "stage2.learning_rate", [1e-6, 2e-6]),
        ("stage2.learning-rate=1e-6", "stage2.learning_rate", [1e-6]),
        ("stage2.train=unet,adapter", "stage2.train", ["unet", "adapter"]),
        ("rank=4,8", "adapter.rank", [4, 8]),
        ("with-prior-preservation=true,false", "prior.preserve", [True, False]),
        ('adapter.target_modules=["attention"],["all"]', "adapter.target_modules", [["attention"], ["all"]]),
        ('data.caption="a {}, on the beach"', "data.caption", ["a {}, on the beach"]),
        ("stage.snr_gamma=5", "stage.snr_gamma", [5]),
    ],
)
def test_settings_are_read_by_any_name_with_values_as_in_toml(text: str, key: str, values: list[Any]) -> None:
    assert read_settings([text], "--vary") == {key: values}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("stage2.learning_rat=1", "did you mean stage2.learning_rate"),
        ("stage2.steps", "has no value; write --vary stage2.steps=VALUE"),
        ("stage2.steps=", "has no value"),
        ("stage2.steps=3,3", "is there twice"),
        ("seed=1,2", "is for --seeds to set"),
        ("data.photos=x", "is for --photos or --subject to set"),
    ],
)
def test_a_setting_that_cannot_be_varied_is_refused(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        read_settings([text], "--vary")
    assert str(error.value).startswith(f"--vary {text}: ")


def test_seeds_are_whole_numbers_each_once() -> None:
    assert read_seeds("0, 1,17") == (0, 1, 17)
    for text in ("", "x", "-1", "0,", "1,1", "1.5"):
        with pytest.raises(UserError, match="--seeds"):
            read_seeds(text)


def test_a_budget_is_the_recipe_or_steps_or_seconds() -> None:
    assert read_budget("recipe") == Budget()
    assert read_budget("steps=500") == Budget(kind="steps", amount=500)
    assert read_budget("seconds=7.5") == Budget(kind="seconds", amount=7.5)
    for text in ("", "steps", "steps=0", "steps=1.5", "hours=3", "steps=x"):
        with pytest.raises(UserError, match="must be recipe, steps=N or seconds=S"):
            read_budget(text)


def test_a_subject_is_photos_class_and_what_is_held_out() -> None:
    subject = read_subject("toy/:stuffed animal:toy/3.png")
    assert (subject.photos, subject.class_noun, subject.held_out) == (
        Path("toy"),
        "stuffed animal",
        (Path("toy/3.png"),),
    )
    assert read_subject(r"C:\photos\toy:cat").photos == Path(r"C:\photos\toy")
    with pytest.raises(UserError, match="DIR:CLASS or DIR:CLASS:HELD_OUT"):
        read_subject("toy/")


def test_all_that_cannot_be_read_is_told_at_once() -> None:
    asked = Asked(vary=("x=1", "y=2"), settings=("z=1",), seeds="x", budget="x")
    with pytest.raises(UserError) as error:
        read_request(asked, ["two-stage"], Evaluation())
    assert len(str(error.value).splitlines()) == 6
    with pytest.raises(UserError, match="one or the other"):
        read_request(Asked(subject=("a:b",), photos=Path("a")), ["two-stage"], Evaluation())
