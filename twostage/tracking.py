"""Experiment trackers, through accelerate: what metrics.jsonl and samples/ hold, where others can watch it."""

from __future__ import annotations

import importlib
import importlib.util
import math
import secrets
from collections.abc import Sequence
from typing import Any

import accelerate
import numpy as np
from PIL import Image

from twostage.errors import UserError
from twostage.method.loop import Step
from twostage.recipe import Recipe
from twostage.recipe_file import flatten
from twostage.run_folder import RunFolder

# TensorBoard's is a folder of the run; W&B's is where all runs come together.
_PROJECTS = {"tensorboard": "tensorboard", "wandb": "twostage"}
_PICTURES: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}}
# Folders of one machine.
_LEFT_OUT: Any = {
    "data": {"photos", "held_out"},
    "prior": {"class_images"},
    "select": {"encoders"},
    "subjects": {"__all__": {"photos"}},
}


def check_installed(recipe: Recipe) -> None:
    """Before anything is loaded for a run.

    Raises:
        UserError: the recipe's tracker is not there.
    """
    name = recipe.report_to
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"report_to {name}: {name} is not installed; pip install 'twostage[track]'")


class Tracking:
    """The tracker that the recipe names; where it names none, nothing is done here.

    Steps are counted through both stages: a tracker's clock never goes back.
    """

    def __init__(self, accelerator: accelerate.Accelerator, recipe: Recipe) -> None:
        self._accelerator, self._recipe = accelerator, recipe
        self._wanted = recipe.report_to != "none"

    def start(self, folder: RunFolder, *, resumes: bool) -> None:
        """Tell the tracker of the run, or that it goes on.

        Args:
            folder: of the run, begun; keeps the tracker's files.
            resumes: a run that was tracked before.

        Raises:
            UserError: the tracker refused, for want of a login or a connection.
        """
        if not self._wanted:
            return
        name = self._recipe.report_to
        given: dict[str, dict[str, Any]] = {}
        if name == "wandb":
            known = folder.facts.get("wandb_id") or secrets.token_hex(4)
            if self._accelerator.is_main_process:
                folder.update(wandb_id=known)
            given["wandb"] = {"id": known, "resume": "allow", "name": folder.path.name, "dir": str(folder.path)}
        try:
            self._accelerator.init_trackers(_PROJECTS[name], None if resumes else _configuration(self._recipe), given)
        except _errors(name) as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise UserError(
                f"report_to {name} did not start: {reason}; log in with `wandb login`, or set WANDB_MODE=offline and "
                "send it later"
            ) from error

    def log(self, step: Step) -> None:
        """Pass on the numbers of a step."""
        if self._wanted:
            values = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm}
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            named = {f"stage{step.stage}/{name}": value for name, value in finite.items()}
            self._accelerator.log(named, step=self._count(step.stage, step.step))

    def show(self, stage: int, step: int, pictures: Sequence[Image.Image], columns: int) -> None:
        """Pass on sample pictures, `columns` for each prompt."""
        rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
        values = {
            f"samples/prompt{number}": np.stack([np.asarray(p) for p in row]) for number, row in enumerate(rows, 1)
        }
        for tracker in self._accelerator.trackers if self._wanted else []:
            tracker.log_images(values, step=self._count(stage, step), **_PICTURES.get(tracker.name, {}))

    def end(self) -> None:
        """Have the tracker write what it holds back, and wait for it."""
        self._accelerator.end_training()

    def _count(self, stage: int, step: int) -> int:
        before = self._recipe.stage1.steps if stage == 2 and self._recipe.stage1 else 0
        return before + step


def _configuration(recipe: Recipe) -> dict[str, Any]:
    """The recipe in one level; trackers take text, numbers and truth values."""
    return {
        name: value if isinstance(value, bool | int | float | str) else "" if value is None else str(value)
        for name, value in flatten(recipe.model_dump(mode="json", exclude=_LEFT_OUT)).items()
    }


def _errors(name: str) -> tuple[type[Exception], ...]:
    """What a tracker that cannot start raises."""
    return (OSError, importlib.import_module("wandb").Error) if name == "wandb" else (OSError,)
