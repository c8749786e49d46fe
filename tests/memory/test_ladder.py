"""Every rung changes something, and leaves a recipe that is valid."""

import pytest

from twostage.memory.ladder import LADDER, climb
from twostage.recipe_file import load_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_each_rung_changes_what_it_says_and_stands_on_those_below(name):
    ground, *rungs = climb(load_recipe(name, base="sd15"))
    assert not ground.changes
    assert len(rungs) >= 2
    before = ground.recipe
    for standing in rungs:
        assert standing.changes
        assert standing.recipe != before
        before = standing.recipe


def test_a_recipe_that_is_there_already_climbs_no_rung_twice():
    *_, highest = climb(load_recipe("two-stage", base="sd15"))
    assert all(standing.changes != highest.changes for standing in climb(highest.recipe))


def test_no_two_rungs_share_a_name():
    assert len({rung.name for rung in LADDER}) == len(LADDER)
    assert all(rung.price for rung in LADDER)


def test_as_many_photos_make_a_step_however_they_are_added_up():
    for standing in climb(load_recipe("two-stage", base="sd15")):
        if standing.rung.name == "batches of one photo":
            break
        for stage in (standing.recipe.stage1, standing.recipe.stage2):
            assert stage.batch_size * stage.gradient_accumulation_steps == 4


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "adamw4bit", "adafactor"])
def test_no_rung_gives_an_optimizer_more_state_than_it_has(kind):
    states = ["adamw", "adamw8bit", "adamw4bit", "adafactor"]
    recipe = load_recipe("two-stage", base="sd15", overrides={"memory.optimizer": kind})
    chosen = [states.index(standing.recipe.memory.optimizer) for standing in climb(recipe)]
    assert chosen == sorted(chosen)
    assert chosen[-1] == states.index("adafactor")
