"""How far a job has come, read off the files that it writes: no worker has to report."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path
from typing import Any

from twostage.comparing.jobs import Job, expected_pictures, training_cost
from twostage.comparing.tasks import Evaluate, LearnToken, Train
from twostage.reading import parse_json


def progress_of(job: Job, root: Path | None) -> tuple[float, str]:
    """The share of a running job that is done, 0 to 1, and what it is at, as far as can be seen from here."""
    if root is None:
        return 0.0, ""
    share, doing = _seen(job.task, root / job.folder)
    return min(max(share, 0.0), 1.0), doing


@singledispatch
def _seen(task: Any, folder: Path) -> tuple[float, str]:
    return 0.0, ""


@_seen.register(LearnToken)
@_seen.register(Train)
def _(task: LearnToken | Train, folder: Path) -> tuple[float, str]:
    last = _last_line(folder / "metrics.jsonl")
    if not last:
        return 0.0, "loading"
    recipe, stage, step = task.recipe, last["stage"], last["step"]
    options = getattr(recipe, f"stage{stage}")
    has_stage1 = isinstance(task, LearnToken) or task.token is None
    total = training_cost(recipe, stage1=has_stage1)
    cost = training_cost(recipe, stage1=stage == 1) if stage == 2 else total - training_cost(recipe, stage1=False)
    before = total - cost if stage == 2 else 0.0
    return (before + cost * step / options.steps) / total, f"stage {stage} {step}/{options.steps}"


@_seen.register
def _(task: Evaluate, folder: Path) -> tuple[float, str]:
    pictures = sum(1 for _ in (folder / "evaluation").rglob("*.png"))
    expected = expected_pictures(task.options) * (1 + len(task.options.strengths))
    return min(pictures / expected, 0.95), f"{pictures} pictures" if pictures else "pictures of the base"


def _last_line(file: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines; nothing where there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(stream.tell() - 2000, 0))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            found = parse_json(line)
        except ValueError:
            continue  # It is being written.
        if isinstance(found, dict):
            return found
    return {}
