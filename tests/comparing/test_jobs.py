"""What several runs share is done once, and nothing that is finished is done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from twostage.comparing import ComparedSubject, Request
from twostage.comparing.jobs import Job, by_urgency, plan_jobs
from twostage.comparing.place import Place
from twostage.comparing.plan import Cell, plan_cells, plan_variants
from twostage.comparing.tasks import Evaluate, LearnToken, MakeClassSamples, Train

Ask = Callable[..., Request]


def planned(request: Request, root: Path) -> tuple[list[Cell], list[Job]]:
    cells = plan_cells(request, plan_variants(request))
    return cells, plan_jobs(Place(str(root)), cells, request.evaluation)


def of(jobs: list[Job], kind: type) -> list[Job]:
    return [job for job in jobs if isinstance(job.task, kind)]


def test_a_stage_1_that_runs_share_is_learned_once_for_each_subject_and_seed(
    ask: Ask, world: Path, tmp_path: Path
) -> None:
    subjects = tuple(ComparedSubject(photos=world / name, class_noun="backpack") for name in ("thing", "other"))
    vary = {"stage2.learning_rate": [1e-3, 2e-3]}
    _, jobs = planned(ask("both", "adapted", "word", subjects=subjects, seeds=(0, 1), vary=vary), tmp_path)
    tokens = of(jobs, LearnToken)
    assert len(tokens) == 4
    for training in of(jobs, Train):
        taken = [job for job in tokens if job.name in training.after]
        assert len(taken) == ("word" not in training.name)
        for job in taken:
            assert job.task.recipe.data == training.task.recipe.data
            assert job.task.recipe.seed == training.task.recipe.seed


def test_a_stage_1_of_other_settings_is_another(ask: Ask, tmp_path: Path) -> None:
    _, jobs = planned(ask("both", vary={"stage1.steps": [3, 6], "stage2.steps": [1, 2]}), tmp_path)
    assert [job.task.recipe.stage1.steps for job in of(jobs, LearnToken)] == [3, 6]
    _, jobs = planned(ask("both", vary={"stage1.steps": [3, 6]}), tmp_path)
    assert not of(jobs, LearnToken)  # Nobody shares one.


def test_class_images_that_runs_share_are_drawn_once_as_many_as_any_wants(ask: Ask, tmp_path: Path) -> None:
    _, jobs = planned(ask("word", vary={"prior.num_class_images": [2, 3], "prior.weight": [0.5, 1.0]}), tmp_path)
    (samples,) = of(jobs, MakeClassSamples)
    assert samples.task.recipe.prior.num_class_images == 3
    assert all(training.after == (samples.name,) for training in of(jobs, Train))


def test_the_base_s_pictures_are_drawn_by_one_evaluation_that_the_others_follow(ask: Ask, tmp_path: Path) -> None:
    _, jobs = planned(ask("both", "word", "embedding"), tmp_path)
    first, *others = of(jobs, Evaluate)
    assert first.behind == ()
    assert all(other.behind == (first.name,) for other in others)


def test_what_is_finished_is_not_done_again(ask: Ask, tmp_path: Path) -> None:
    request = ask("both", "adapted", "word")
    cells, before = planned(request, tmp_path)
    for cell in cells[:2]:
        folder = tmp_path / "runs" / cell.name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"finished": True, "shared": {}}))
    (tmp_path / "runs" / cells[0].name / "evaluation.json").write_text('{"figures": {"dino_seen": {}}}')
    _, after = planned(request, tmp_path)
    assert {job.name for job in after} == {
        f"{cells[1].name} evaluation",
        f"{cells[2].name} training",
        f"{cells[2].name} evaluation",
    }
    assert all(job.behind == () for job in after)  # The base's pictures are there.
    assert len(before) == 1 + 3 + 3


def test_the_longest_chain_begins_first() -> None:
    def job(name: str, cost: float, *after: str, behind: tuple[str, ...] = ()) -> Job:
        return Job(name, name, None, cost, after, behind)

    jobs = [job("short", 2), job("root", 1), job("long", 5, "root"), job("last", 1, behind=("long",))]
    assert [found.name for found in by_urgency(jobs)] == ["root", "long", "short", "last"]


def test_what_is_damaged_is_done_again(ask: Ask, tmp_path: Path) -> None:
    request = ask("both", "word")
    cells, _ = planned(request, tmp_path)
    for cell in cells:
        folder = tmp_path / "runs" / cell.name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"finished": true, "shared": {}}')
        (folder / "evaluation.json").write_text('{"figures": {"dino')
    (tmp_path / "runs" / cells[0].name / "run.json").write_text('{"finis')
    _, jobs = planned(request, tmp_path)
    assert {job.name for job in jobs} == {
        f"{cells[0].name} training",
        f"{cells[0].name} evaluation",
        f"{cells[1].name} evaluation",
    }
