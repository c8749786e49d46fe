"""Every run of a comparison is known, and every mistake told, before one begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from twostage.comparing import Budget, ComparedSubject, Request
from twostage.comparing.plan import plan_cells, plan_variants, scaled
from twostage.errors import UserError
from twostage.recipe_file import load_recipe, shipped_recipes

Ask = Callable[..., Request]


def labels(request: Request) -> list[str]:
    return [variant.label for variant in plan_variants(request)]


def test_runs_are_recipes_times_settings_times_subjects_times_seeds(ask: Ask, world: Path) -> None:
    subjects = tuple(ComparedSubject(photos=world / name, class_noun="backpack") for name in ("thing", "other"))
    request = ask("both", "word", subjects=subjects, seeds=(0, 7), vary={"stage2.learning_rate": [1e-6, 2e-6]})
    cells = plan_cells(request, plan_variants(request))
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 2 * 2 * 2
    assert "both,stage2.learning_rate=1e-06/other/seed-7" in {cell.name for cell in cells}
    one = next(cell for cell in cells if cell.name == "both,stage2.learning_rate=2e-06/thing/seed-7")
    assert one.recipe.stage2 and one.recipe.stage2.learning_rate == 2e-6
    assert (one.recipe.seed, one.recipe.data.class_noun) == (7, "backpack")
    assert one.recipe.name == "both stage2.learning_rate 2e-06"
    assert one.recipe.sample.per_prompt == 0


def test_a_setting_makes_no_rows_of_recipes_that_have_no_use_for_it(ask: Ask) -> None:
    assert labels(ask("both", "word", vary={"stage1.steps": [3, 4]})) == [
        "both,stage1.steps=3",
        "both,stage1.steps=4",
        "word",
    ]
    assert labels(ask("both", vary={"stage2.train": ["unet", "adapter"], "adapter.rank": [2, 4]})) == [
        "both,stage2.train=unet",
        "both,stage2.train=adapter,adapter.rank=2",
        "both,stage2.train=adapter,adapter.rank=4",
    ]
    assert labels(ask("embedding", "both", vary={"prior.preserve": [True], "prior.weight": [0.5, 1.0]})) == [
        "embedding",
        "both,prior.preserve=true,prior.weight=0.5",
        "both,prior.preserve=true,prior.weight=1",
    ]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_can_be_compared(ask: Ask, name: str) -> None:
    request = ask(recipes=(name,), overrides={})
    (cell,) = plan_cells(request, plan_variants(request))
    expected = load_recipe(name, overrides={"data.class_noun": "backpack", "sample.per_prompt": 0})
    assert cell.recipe.stage1 == expected.stage1
    assert cell.recipe.stage2 == expected.stage2
    assert cell.variant == cell.recipe.name == name


def test_all_mistakes_are_told_at_once_before_anything_is_loaded(ask: Ask, tmp_path: Path) -> None:
    subjects = (ComparedSubject(photos=tmp_path / "none", class_noun="x", held_out=(tmp_path / "no.png",)),)
    request = Request(recipes=("two-stag", "dreambooth", "dreambooth"), subjects=subjects)
    with pytest.raises(UserError) as error:
        plan_variants(request)
    told = str(error.value)
    assert all(word in told for word in ("did you mean two-stage?", "no folder of photos", "no held-out", "2 recipes"))
    assert len(told.splitlines()) == 4


def test_a_value_out_of_bounds_is_told_once(ask: Ask) -> None:
    request = ask("both", "word", seeds=(0, 1), vary={"stage2.learning_rate": [-1.0, 1e-3], "stage2.steps": [0, 1]})
    with pytest.raises(UserError) as error:
        plan_cells(request, plan_variants(request))
    assert sorted(line[:24] for line in str(error.value).splitlines()) == sorted(
        ["--stage2.learning-rate -", "--stage2.steps 0: must b"]
    )


def test_a_setting_that_no_recipe_has_a_use_for_is_refused(ask: Ask) -> None:
    with pytest.raises(UserError, match="stage1.steps would do nothing"):
        plan_variants(ask("word", vary={"stage1.steps": [1, 2]}))
    with pytest.raises(UserError, match="adapter.rank would do nothing"):
        plan_variants(ask("both", overrides={"adapter.rank": 3}))


def test_subjects_have_to_have_names_and_classes(ask: Ask, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "thing", tmp_path / "thing")
    both = tuple(ComparedSubject(photos=folder / "thing", class_noun="x") for folder in (world, tmp_path))
    with pytest.raises(UserError, match="a folder called 'thing'"):
        plan_variants(ask("both", subjects=both))
    request = ask("both", subjects=(ComparedSubject(photos=world / "thing"),))
    with pytest.raises(UserError, match="what is on the photos"):
        plan_cells(request, plan_variants(request))


def test_paths_are_full_so_that_a_worker_may_stand_anywhere(
    ask: Ask, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    request = ask("both", subjects=(ComparedSubject(photos=Path("thing"), class_noun="x", held_out=(Path("other"),)),))
    (cell,) = plan_cells(request, plan_variants(request))
    assert cell.recipe.data.photos == world / "thing"
    assert cell.recipe.data.held_out == (world / "other",)


@pytest.mark.parametrize(("total", "expected"), [(10, (6, 4)), (500, (300, 200)), (3, (2, 1)), (2, (1, 1))])
def test_a_budget_of_steps_is_shared_in_the_recipe_s_proportion(
    ask: Ask, total: int, expected: tuple[int, int]
) -> None:
    request = ask("both", "word", budget=Budget(kind="steps", amount=total))
    both, word = (cell.recipe for cell in plan_cells(request, plan_variants(request)))
    assert tuple(scaled(both, total).values()) == expected
    assert scaled(word, total) == {"stage2": total}


def test_a_budget_of_less_than_a_step_a_stage_is_refused(ask: Ask) -> None:
    request = ask("both")
    (cell,) = plan_cells(request, plan_variants(request))
    with pytest.raises(UserError, match="too small"):
        scaled(cell.recipe, 1)


def test_values_that_folders_cannot_tell_apart_are_refused(ask: Ask) -> None:
    with pytest.raises(UserError, match="2 recipes are called 'both,data.caption=a'"):
        plan_variants(ask("both", vary={"data.caption": ["a {}", "{} a"]}))


def test_folders_of_long_values_have_names_that_file_systems_take(ask: Ask) -> None:
    found = labels(ask("both", vary={"data.caption": ["a {} " + "x" * 300, "a {} " + "x" * 301]}))
    assert len(set(found)) == 2 and all(len(label) < 100 for label in found)
