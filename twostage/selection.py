"""Which checkpoint becomes the result, and when a stage ends early: decided by what the checkpoints draw.

The encoders are loaded once and stay on the CPU, beside whatever trains on a GPU: measuring four pictures takes a
ViT-S/16 and a CLIP ViT-B/32 about a second there, and takes nothing of the GPU's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from twostage.checkpoints import checkpoint_name
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluation.checkpoints import FILE, Measured, Measurer, copies, ranked, read_measured
from twostage.evaluation.encoders import Encoders, load_encoders
from twostage.evaluation.material import Opened
from twostage.quiet import quiet
from twostage.recipe import Recipe, Select
from twostage.run_folder import RunFolder
from twostage.subject.photos import Photo, open_photo
from twostage.subject.pictures import Unusable, read_picture


class Selection:
    """Measures the samples of checkpoints, and decides by what was measured, in this session and in those before.

    Args:
        recipe: of the run; its [select] wants something.
        folder: of the run.
        photos: of the first subject, whom the samples show.
        held_out: photos of that subject which training does not see.
        display: for notes and figures.
        measures: whether this process is the one that measures.

    Raises:
        UserError: an encoder or a held-out photo is missing that the decision needs.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        photos: Sequence[Photo],
        held_out: Sequence[Photo],
        display: Display,
        measures: bool = True,
    ) -> None:
        self._recipe, self._folder, self._display = recipe, folder, display
        names, prompts = ("{}", recipe.token.placeholder), recipe.sample.prompts
        self._rows = {row: text for row, text in enumerate(prompts) if any(name in text for name in names)}
        self._chosen: Measured | None = None
        self._against = "held-out photos" if held_out else "training photos"
        if recipe.select.stop_on_copying and not held_out:
            raise UserError(
                f"select.stop_on_copying = {recipe.select.stop_on_copying} needs a photo that training does not see; "
                "hold one out with --held-out"
            )
        with quiet():
            encoders = load_encoders(("dinov2=none", *recipe.select.encoders), pocket=recipe.base == "pocket")
        _check_encoders(recipe.select, encoders, display)
        if not held_out and "dino" in encoders.by_role:
            display.say(
                "note: no photo is held out (--held-out): checkpoints are measured against the photos trained on, "
                "which rewards copying them"
            )
        self._encoders = encoders.facts
        self._measurer: Measurer | None = None
        if measures:
            told = [_without_token(text, recipe) for text in self._rows.values()]
            self._measurer = Measurer(encoders, Opened(photos, open_photo), Opened(held_out, open_photo), told)

    @property
    def _stage(self) -> int:
        """The one whose weights are the run's result."""
        return 2 if self._recipe.stage2 else 1

    def look(self, stage: int, step: int, steps: int) -> bool:
        """Measure the samples of a checkpoint, unless that was done before; whether its stage of `steps` ends here."""
        assert self._measurer is not None
        measured = read_measured(self._folder.path)
        if not any(found.place == (stage, step) for found in measured):
            name, columns = checkpoint_name(stage, step), self._recipe.sample.per_prompt
            rows = [[_read(file) for file in self._folder.sample_files(name, row, columns)] for row in self._rows]
            found = self._measurer.measure(stage, step, rows)
            self._folder.append(FILE, asdict(found))
            self._display.say(_line(found))
            measured.append(found)
        patience = self._recipe.select.stop_on_copying
        own = [found for found in measured if found.stage == stage]
        if step == steps or not patience or not copies(own, patience):
            return False
        self._display.say(
            f"stage {stage} ends after step {step} of {steps}: at {patience} checkpoints in a row its pictures came "
            "nearer to single training photos, and no nearer to the held-out ones"
        )
        return True

    def best(self, place: tuple[int, int]) -> tuple[int, int] | None:
        """Stage and step of the checkpoint that did best before another; None where the last one is the result.

        Before, and not with it: that one is there itself, and was saved before it was measured.
        """
        if self._recipe.select.keep != "best" or place[0] != self._stage:
            return None
        found = ranked(read_measured(self._folder.path), self._stage, (place[0], place[1] - 1))
        return found[0].place if found else None

    def choose(self, stage: int, last: int) -> tuple[int, dict[str, Tensor] | None]:
        """The step whose weights are the stage's result, and the weights unless it is the last step."""
        if stage != self._stage or self._recipe.select.keep != "best":
            return last, None
        for found in ranked(read_measured(self._folder.path), stage, (stage, last)):
            weights = None if found.step == last else self._folder.checkpoints.weights_at(stage, found.step)
            if found.step == last or weights is not None:
                self._chosen = found
                return found.step, weights
            self._display.say(f"note: step {found.step} did best, and its weights cannot be read; taking the next best")
        return last, None

    def facts(self) -> dict[str, Any]:
        """What was decided, and by what, for run.json."""
        measured, stopped = read_measured(self._folder.path), {}
        for stage, options in ((1, self._recipe.stage1), (2, self._recipe.stage2)):
            own = [found.step for found in measured if found.stage == stage]
            if options and own and own[-1] < options.steps:
                stopped[f"stage{stage}"] = own[-1]
        last = [found for found in measured if found.stage == self._stage][-1:]
        chosen = self._chosen or (last[0] if last else None)
        return {
            "keep": self._recipe.select.keep,
            "measured_against": self._against,
            "encoders": self._encoders,
            "stopped": stopped,
            "chosen": asdict(chosen) if chosen else None,
            "last": asdict(last[0]) if last else None,
        }


def _check_encoders(options: Select, encoders: Encoders, display: Display) -> None:
    """Make sure of those that the decision needs, and say which others are missing."""
    needs = {"dino": "stop_on_copying"} if options.stop_on_copying else {}
    if options.keep == "best":
        needs = dict.fromkeys(("dino", "clip"), "keep")
    for role, option in needs.items():
        if role not in encoders.by_role:
            raise UserError(
                f"select.{option} = {getattr(options, option)!r} needs a {role} encoder: {encoders.left_out[role]}"
            )
    if not encoders.by_role:
        raise UserError(f"select.measure = true has no encoder to measure with: {encoders.left_out['dino']}")
    for role in {"dino", "clip"} - encoders.by_role.keys():
        display.say(f"note: checkpoints are measured without {role}: {encoders.left_out[role]}")


def _without_token(text: str, recipe: Recipe) -> str:
    """A prompt that names the class in place of the subject, as far as there is a class noun."""
    plain = text.replace("{}", recipe.data.class_noun)
    for token, _ in recipe.every_subject():
        plain = plain.replace(token.placeholder, "")
    return " ".join(plain.split())


def _read(file: Path) -> Image.Image:
    try:
        return read_picture(file)
    except Unusable as reason:
        raise UserError(f"cannot read the sample {file}: {reason}; remove it, and go on with --resume") from None


def _line(found: Measured) -> str:
    told = {
        "identity": found.identity,
        "prompt": found.prompt_fidelity,
        "copying": found.copying,
        "score": found.score,
    }
    shown = ", ".join(f"{name} {value:.3f}" for name, value in told.items() if value is not None)
    return f"stage {found.stage}, step {found.step}: {shown}"
