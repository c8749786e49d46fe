"""Training within so much memory: on the cheapest rung of the ladder that fits, and on the next one if that fails."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from twostage import run
from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.families import load_base
from twostage.gauge import Prediction, size
from twostage.lack import OutOfMemory, told_of_lack
from twostage.machine import compute_capability, describe, has_fast_bfloat16, room_for_tensors, usual_device
from twostage.memory.heap import give_back
from twostage.memory.ladder import Standing, changed_recipe, changes_up_to, climb
from twostage.planning import CARD, CPU, Machine, check_fits, plan, read_size
from twostage.planning.rehearsal import Rehearsed, rehearse
from twostage.processes import check_bfloat16
from twostage.recipe import Recipe
from twostage.run_folder import RunFolder
from twostage.stages import find_subject_photos
from twostage.subject.held_out import find_held_out

# A rung that takes more than this share of what was too much is not worth beginning anew for.
_WORTH = 0.97
# Phases of a run as run.json calls them, and as a plan does: what a class is held to is images or predictions there.
_CLASS = "class samples"
_PHASES = {"stage1": "stage 1", "stage2": "stage 2", "encode_photos": "encode", "prior": _CLASS}


def train(
    recipe: Recipe,
    output: Path,
    vram: str,
    *,
    resume: bool = False,
    token_from: Path | None = None,
    display: Display | None = None,
) -> Path:
    """Train as `run.train` does, with the recipe changed as far as it takes to fit.

    The cheapest rung of the memory ladder is taken that is predicted to fit with a margin. Where memory runs out all
    the same, the run goes on one rung further down, after the last step that was done.

    Args:
        recipe, output, resume, token_from, display: as in `run.train`.
        vram: memory to fit, as "8GB", or "auto" for what there is: of the GPU, or of the RAM where there is none.

    Returns:
        The run folder. Its recipe.toml has the options that were used, its run.json the plan.

    Raises:
        UserError: as `run.train`; `vram` is no size; or no rung fits, and nothing has been written.
    """
    display, folder = display or terminal_display(), RunFolder(Path(output))
    asked = None if vram == "auto" else read_size(vram)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"--vram {vram} is for one process; ask `twostage plan`, and give its flags to all of them")
    if resume:
        recipe = folder.fitted(recipe)
        if folder.finished:
            return run.train(recipe, output, resume=True, display=display)
    else:
        folder.check_free()
        find_subject_photos(recipe, find_held_out(recipe.data))
    takes_token = token_from is not None or "from" in folder.facts
    fit = Fit(recipe, _Limit(vram, asked, display), folder.facts.get("plan", {}), takes_token, display)
    while True:
        if resume:
            folder.hold()  # Where another process trains, nothing is changed.
            try:
                folder.update(**fit.prediction.facts)
                folder.refit(fit.recipe)
            finally:
                folder.let_go()
        lack = None
        try:
            return run.train(
                fit.recipe, output, resume=resume, token_from=token_from, prediction=fit.prediction, display=display
            )
        except OutOfMemory as error:
            lack = error.bare()
        give_back()
        with told_of_lack("", lack.stage, str(lack)):
            fit.climb_after(lack)
        if (Path(output) / "run.json").is_file():
            resume, token_from = True, None
            folder.open()


class _Limit:
    """How much memory there is to fit, and of what.

    Args:
        vram: as the user gave it.
        asked: its bytes; None for all there are.
        display: told where there are less.
    """

    def __init__(self, vram: str, asked: int | None, display: Display) -> None:
        self.vram, device = vram, torch.device(usual_device())
        there = room_for_tensors(device)
        kind = CARD if device.type == "cuda" else CPU
        self.card, self.capability = describe(device), compute_capability(device)
        self.machine: Machine = dataclasses.replace(kind, fast_bfloat16=has_fast_bfloat16(self.capability))
        self.bytes = there if asked is None else min(asked, there)
        if asked is None:
            display.say(f"--vram auto: {size(there)} of {self.machine.name}")
        elif there < asked:
            display.say(f"note: of the {vram} asked for, this machine has {size(there)} of {self.machine.name} left")


class Fit:
    """A recipe on the ladder.

    Args:
        recipe: as it is asked for, or as an interrupted run goes on with it.
        limit: what it is to fit.
        before: what run.json says of an earlier plan of the same run.
        takes_token: whether stage 1 was done in another run.
        display: told what is changed.

    Raises:
        UserError: no rung fits.
    """

    def __init__(
        self, recipe: Recipe, limit: _Limit, before: Mapping[str, Any], takes_token: bool, display: Display
    ) -> None:
        self._asked, self._limit, self._before, self._display = recipe, limit, before, display
        self._lacked: list[dict[str, Any]] = list(before.get("lacked", []))
        check_bfloat16(recipe, limit.card, limit.capability)
        # By its folder: a hub id that is not known by name is one by now.
        outlined = recipe.model_copy(update={"base": str(load_base(recipe.base).folder)})
        if takes_token:
            outlined = outlined.model_copy(update={"stage1": None})
        planned = plan(outlined, limit.bytes, display, limit.machine)
        check_fits(planned, limit.vram, limit.machine)
        assert planned.chosen is not None
        self._standings = list(climb(outlined, limit.machine.fast_bfloat16))
        self._found = {number: rung.rehearsed for number, rung in enumerate(planned.ladder) if rung.rehearsed}
        self._number = planned.ladder.index(planned.chosen)
        for standing in self._standings[1 : self._number + 1]:
            display.say(f"to fit {limit.vram}: {_shown(standing)}")
        needs, decisive = limit.machine.needs(self._rehearsed(self._number))[1], self._rehearsed(self._number).decisive
        display.say(f"predicted: {needs:.2f} GiB of {size(limit.bytes)}, in {decisive.name}, at a generous estimate")

    @property
    def recipe(self) -> Recipe:
        """On the rung that is reached."""
        recipe = changed_recipe(self._asked, self._changes)
        assert recipe is not None, "the ladder has left out what does not go together"
        return recipe

    @property
    def prediction(self) -> Prediction:
        """Of what it takes there."""
        rehearsed = self._rehearsed(self._number)
        stages = {int(phase.name[-1]): phase for phase in rehearsed.phases if phase.unit == "step"}
        facts = {
            "asked": self._limit.vram,
            "bytes": self._limit.bytes,
            "of": self._limit.machine.name,
            "rung": self._standings[self._number].rung.name,
            "changes": {**self._before.get("changes", {}), **self._changes},
            "predicted": {
                phase.name: {"allocated": phase.allocated, "reserved": phase.reserved, "host": phase.host}
                for phase in rehearsed.phases
            },
            "lacked": self._lacked,
        }
        peaks = {stage: phase.allocated for stage, phase in stages.items()}
        return Prediction(peaks, {"plan": facts})

    def climb_after(self, lack: OutOfMemory) -> None:
        """Take the next rung on which what lacked memory takes less.

        Raises:
            UserError: there is none.
        """
        start = self._number
        for number in range(start + 1, len(self._standings)):
            if self._takes(number, lack) <= _WORTH * self._takes(start, lack):
                self._number = number
                break
        else:
            raise UserError(
                f"out of memory in {_named(lack)} on the rung {self._standings[start].rung.name!r}, and nothing "
                f"further down the ladder takes less; it needs a larger {self._limit.machine.name}. What was done is "
                "kept for --resume"
            )
        before, after = (self._standings[number].rung.name for number in (start, self._number))
        entry = {"phase": lack.phase, "stage": lack.stage, "step": lack.kept, "from": before, "to": after}
        self._lacked.append(entry)
        told = "; ".join(_shown(standing) for standing in self._standings[start + 1 : self._number + 1])
        self._display.say(f"out of memory in {_named(lack)}{_where(lack)}: {told}")

    def _takes(self, number: int, lack: OutOfMemory) -> int:
        """Bytes on a rung of the phase that lacked memory; where the plan has no name for it, of the largest."""
        rehearsed = self._rehearsed(number)
        name = f"stage {lack.stage}, samples" if lack.phase == "samples" else _PHASES.get(lack.phase)
        names = ("class images", "class predictions") if name == _CLASS else (name,)
        (phase,) = [phase for phase in rehearsed.phases if phase.name in names] or [rehearsed.decisive]
        return phase.allocated + (phase.host if self._limit.machine.name == CPU.name else 0)

    @property
    def _changes(self) -> dict[str, Any]:
        return changes_up_to(self._standings, self._standings[self._number])

    def _rehearsed(self, number: int) -> Rehearsed:
        if number not in self._found:
            self._found[number] = rehearse(self._standings[number].recipe)
        return self._found[number]


def _named(lack: OutOfMemory) -> str:
    return _PHASES.get(lack.phase) or lack.phase or "a stage"


def _shown(standing: Standing) -> str:
    changes = ", ".join(f"{name} = {_value(value)}" for name, value in standing.changes.items())
    return f"{standing.rung.name} ({changes})"


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _where(lack: OutOfMemory) -> str:
    """What of a stage is kept."""
    if not lack.phase.startswith("stage"):
        return ""
    if lack.kept == lack.step:
        return f" after step {lack.step}, going on there"
    begun = f"after step {lack.kept}" if lack.kept else "from its beginning"
    return f" after step {lack.step}, and the next had begun to move weights; going on {begun}"
