"""A task that was killed can be done again, and what others did for a run is counted as its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.watching import Watcher, assert_same_bits, ctrl_c
from twostage.comparing import Request
from twostage.comparing.budget import steps_within
from twostage.comparing.jobs import plan_jobs
from twostage.comparing.place import Place
from twostage.comparing.plan import plan_cells, plan_variants
from twostage.comparing.tasks import Evaluate, LearnToken, MakeClassSamples, Probe, Train
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Recipe
from twostage.run import train

Ask = Callable[..., Request]


def recipe_of(request: Request) -> Recipe:
    return plan_cells(request, plan_variants(request))[0].recipe


def facts(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "run.json").read_text())
    return found


def test_a_run_with_a_shared_stage_1_has_the_bits_and_the_seconds_of_one_of_its_own(ask: Ask, tmp_path: Path) -> None:
    request, place = ask("both", vary={"stage2.steps": [2, 4]}), Place(str(tmp_path))
    cells = plan_cells(request, plan_variants(request))
    jobs = {type(job.task): job for job in plan_jobs(place, cells, request.evaluation)}
    learning, training = jobs[LearnToken].task, jobs[Train].task
    learning.run()
    training.run()
    folder = tmp_path / training.name
    assert_same_bits(folder, train(training.recipe, tmp_path / "alone", display=Display()))
    shared = facts(tmp_path / learning.name)["seconds"]["stage1"]
    assert facts(folder)["seconds"]["stage1"] == shared
    assert facts(folder)["shared"] == {"stage1": shared}
    training.run()  # Again, as after a kill: nothing is counted twice.
    assert facts(folder)["seconds"]["stage1"] == shared


def test_a_begun_run_goes_on_and_a_half_made_one_begins_anew(ask: Ask, tmp_path: Path) -> None:
    recipe = recipe_of(ask("both"))
    whole = train(recipe, tmp_path / "whole", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "runs" / "begun", display=Watcher(("stage 2", 2), ctrl_c))
    half = tmp_path / "runs" / "half"
    half.mkdir()
    (half / "recipe.toml").write_text("cut sh")
    for name in ("begun", "half"):
        Train(Place(str(tmp_path)), f"runs/{name}", recipe).run()
        assert_same_bits(tmp_path / "runs" / name, whole)


def test_class_samples_are_made_for_the_cache_and_their_seconds_counted(ask: Ask, tmp_path: Path, cache: Path) -> None:
    recipe, place = recipe_of(ask("word")), Place(str(tmp_path))
    MakeClassSamples(place, "shared/class", recipe).run()
    assert len(list(cache.rglob("class-images/*/*.png"))) == recipe.prior.num_class_images
    assert not list(tmp_path.rglob("recipe.toml"))
    Train(place, "runs/x", recipe, samples="shared/class").run()
    seconds = json.loads((tmp_path / "shared" / "class.json").read_text())["seconds"]
    assert facts(tmp_path / "runs" / "x")["seconds"]["prior"] >= seconds > 0


def test_the_speed_of_a_recipe_is_measured_without_the_cache(ask: Ask, cache: Path, tmp_path: Path) -> None:
    recipe = recipe_of(ask("word", overrides={"base": ask("word").overrides["base"], "prior.sample_batch_size": 1}))
    measured = Probe("word", recipe).run()
    assert measured.keys() == {"stage2", "once", "prior"}
    assert all(value > 0 for value in measured.values())
    assert not list(cache.rglob("class-images"))


def test_a_budget_of_seconds_counts_what_comes_before_training(ask: Ask) -> None:
    both, word = recipe_of(ask("both")), recipe_of(ask("word"))
    measured = {"stage1": 0.1, "stage2": 0.2, "once": 1.0, "prior": 0.0}
    assert steps_within(both, 15.0, measured) == {"stage1": 60, "stage2": 40}
    assert steps_within(word, 15.0, measured | {"prior": 4.0}) == {"stage2": 50}
    with pytest.raises(UserError, match=r"9.0 s go before, of them 8.0 s for class samples"):
        steps_within(word, 9.0, measured | {"prior": 8.0})


def test_strengths_are_left_out_where_a_token_alone_was_learned(ask: Ask, tmp_path: Path) -> None:
    request, place = ask("embedding"), Place(str(tmp_path))
    recipe = recipe_of(request)
    Train(place, "runs/x", recipe).run()
    told = Evaluate(place, "runs/x", recipe, request.evaluation.model_copy(update={"strengths": (0.5,)})).run()
    assert any("--strength" in note for note in told["notes"])
    assert "curve" not in place.facts("runs/x/evaluation.json")
