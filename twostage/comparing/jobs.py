"""The jobs of a comparison: what is left to do, what has to wait for what, and what several runs share."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twostage.comparing.place import Place
from twostage.comparing.plan import Cell
from twostage.comparing.tasks import FINISHED, Evaluate, LearnToken, MakeClassSamples, Train
from twostage.evaluating import FILE as EVALUATION
from twostage.recipe import Adapter, Prior, Recipe, Stage
from twostage.recipe_evaluation import Evaluation

RUNS = "runs"
SHARED = "shared"


@dataclass(frozen=True)
class Job:
    """Something that a worker does.

    Attributes:
        name: for people, and for other jobs to wait for: "two-stage/backpack/seed-0 evaluation".
        folder: name of the folder it works in.
        task: what to do.
        cost: about how much work that is, in passes of one picture through the U-Net.
        after: jobs that have to have succeeded.
        behind: jobs that have to be over, well or not.
    """

    name: str
    folder: str
    task: Any
    cost: float
    after: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


def plan_jobs(place: Place, cells: Sequence[Cell], evaluation: Evaluation) -> list[Job]:
    """What is left to do, in an order in which it could be done one by one."""
    # One whose file is damaged is evaluated again: its pictures are there.
    left = [cell for cell in cells if not place.facts(f"{RUNS}/{cell.name}/{EVALUATION}").get("figures")]
    trained = {cell.name for cell in left if _is_trained(place, f"{RUNS}/{cell.name}")}
    tokens, samples = _shared_tokens(cells), _shared_samples(cells)
    training = [cell for cell in left if cell.name not in trained]
    jobs = [*_token_jobs(place, training, tokens), *_samples_jobs(place, training, samples)]
    there = {job.name for job in jobs}
    for cell in training:
        token, own = tokens.get(cell.name), samples.get(cell.name)
        waits = tuple(name for name in (token, own) if name in there)
        task = Train(place, f"{RUNS}/{cell.name}", cell.recipe, token, own)
        cost = training_cost(cell.recipe, stage1=token is None)
        jobs.append(Job(f"{cell.name} training", f"{RUNS}/{cell.name}", task, cost, waits))
    return jobs + _evaluations(place, cells, left, evaluation, {job.name: job for job in jobs})


def _evaluations(
    place: Place, cells: Sequence[Cell], left: Sequence[Cell], evaluation: Evaluation, jobs: dict[str, Job]
) -> list[Job]:
    """One a cell. The first of those that are compared with the same pictures of the base draws these, alone."""
    drawn = {_base_pictures(cell) for cell in cells if cell not in left}
    firsts: dict[str, str] = {}
    found = []
    for cell in sorted(left, key=lambda cell: training_cost(cell.recipe)):
        name, key = f"{cell.name} evaluation", _base_pictures(cell)
        behind = (firsts[key],) if key in firsts else ()
        if key not in drawn:
            firsts.setdefault(key, name)
        training = f"{cell.name} training"
        after = (training,) if training in jobs else ()
        task = Evaluate(place, f"{RUNS}/{cell.name}", cell.recipe, evaluation)
        cost = evaluation_cost(cell.recipe, evaluation)
        found.append(Job(name, f"{RUNS}/{cell.name}", task, cost, after, behind))
    return found


def by_urgency(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that the longest chains hang on first, so that no worker waits for the last chain alone."""
    waiting = defaultdict(list)
    for job in jobs:
        for name in (*job.after, *job.behind):
            waiting[name].append(job)
    chains: dict[str, float] = {}

    def chain(job: Job) -> float:
        if job.name not in chains:
            chains[job.name] = job.cost + max((chain(later) for later in waiting[job.name]), default=0.0)
        return chains[job.name]

    return sorted(jobs, key=lambda job: -chain(job))


def training_cost(recipe: Recipe, *, stage1: bool = True) -> float:
    """Passes through the U-Net; one backward is two forward."""

    def of(stage: Stage, samples: int) -> float:
        return 3.0 * stage.steps * stage.batch_size * stage.gradient_accumulation_steps * samples

    cost = of(recipe.stage1, 1) if recipe.stage1 and stage1 else 0.0
    return cost + (of(recipe.stage2, 1 + recipe.prior.wanted) if recipe.stage2 else 0.0)


def evaluation_cost(recipe: Recipe, options: Evaluation) -> float:
    """Passes through the U-Net."""
    steps = options.num_inference_steps or recipe.sample.num_inference_steps
    share = recipe.sample.class_guidance if options.class_guidance is None else options.class_guidance
    return steps * (3.0 if share else 2.0) * expected_pictures(options) * (1 + len(options.strengths))


def expected_pictures(options: Evaluation) -> int:
    """About how many an evaluation draws of the result; a suite is taken to have 20 prompts."""
    prompts = min(options.num_prompts or 20, 20)
    return prompts * options.images_per_prompt + options.num_class_images + options.num_unrelated_images


def _is_trained(place: Place, folder: str) -> bool:
    facts = place.facts(f"{folder}/{FINISHED}")
    return bool(facts.get("finished")) and "shared" in facts


def _token_jobs(place: Place, training: Iterable[Cell], tokens: dict[str, str]) -> list[Job]:
    jobs = {}
    for cell in training:
        name = tokens.get(cell.name)
        if name is None or name in jobs or place.facts(f"{name}/{FINISHED}").get("finished"):
            continue
        recipe = _stage1_alone(cell.recipe)
        jobs[name] = Job(name, name, LearnToken(place, name, recipe), training_cost(recipe))
    return list(jobs.values())


def _samples_jobs(place: Place, training: Iterable[Cell], samples: dict[str, str]) -> list[Job]:
    jobs: dict[str, Job] = {}
    for cell in training:
        name, prior = samples.get(cell.name), cell.recipe.prior
        if name is None or "seconds" in place.facts(f"{name}.json"):
            continue
        cost = 2.0 * prior.num_inference_steps * prior.num_class_images
        # The largest set holds the smaller ones.
        if name not in jobs or jobs[name].cost < cost:
            jobs[name] = Job(name, name, MakeClassSamples(place, name, cell.recipe), cost)
    return list(jobs.values())


def _shared_tokens(cells: Sequence[Cell]) -> dict[str, str]:
    """Cells that can take their token from a run of stage 1 that others take theirs from too: cell -> that run."""
    groups: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        recipe = cell.recipe
        if recipe.stage1 and recipe.stage2:
            groups[_key(_stage1_alone(recipe).model_copy(update={"name": "stage1"}))].append(cell.name)
    return {name: f"{SHARED}/stage1-{key}" for key, names in groups.items() if len(names) > 1 for name in names}


def _shared_samples(cells: Sequence[Cell]) -> dict[str, str]:
    """Cells that hold to the same class samples, or to the first of them: cell -> name of the samples."""
    groups: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        recipe = cell.recipe
        if not recipe.prior.wanted or recipe.prior.source == "photos":  # Which every run makes for itself.
            continue
        # What the cache's own key depends on.
        prior = recipe.prior.model_copy(update={"num_class_images": 1, "weight": 1.0, "sample_batch_size": 1})
        data = [recipe.data.class_noun, recipe.data.resolution]
        facts = [recipe.base, recipe.seed, recipe.mixed_precision, data, prior.model_dump(mode="json")]
        groups[_key(facts)].append(cell.name)
    return {name: f"{SHARED}/class-{key}" for key, names in groups.items() if len(names) > 1 for name in names}


def _stage1_alone(recipe: Recipe) -> Recipe:
    """What a run has to be trained with for its token to be that of a run of both stages, bit for bit."""
    assert recipe.stage1
    within = tuple(step for step in recipe.checkpoints.at if step <= recipe.stage1.steps)
    update = {
        "name": f"{recipe.name} stage 1",
        "description": "",
        "stage2": None,
        "adapter": Adapter(),
        "prior": Prior(),
        "checkpoints": recipe.checkpoints.model_copy(update={"at": within}),
    }
    return recipe.model_copy(update=update)


def _base_pictures(cell: Cell) -> str:
    recipe = cell.recipe
    sampler = [recipe.sample.num_inference_steps, recipe.sample.guidance_scale]
    return _key([recipe.base, recipe.data.class_noun, recipe.data.resolution, sampler])


def _key(facts: Any) -> str:
    if isinstance(facts, Recipe):
        facts = facts.model_dump(mode="json")
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
