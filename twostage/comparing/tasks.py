"""What a worker does, one at a time. Each can be done again after a kill: what is finished is found, not redone."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from twostage.class_prior import find_class_pictures, prepare_class
from twostage.comparing.place import Place, remove
from twostage.display import Display
from twostage.evaluating import FILE as EVALUATION
from twostage.evaluating import evaluate
from twostage.families import load_base
from twostage.recipe import Checkpoints, Recipe
from twostage.recipe_evaluation import Evaluation
from twostage.run import train
from twostage.run_folder import RunFolder
from twostage.session import Session

FINISHED = "run.json"
# Of each stage, for a measurement of its speed; the first ones are slower.
PROBE_STEPS, WARM_UP = 5, 2


class Notes(Display):
    """Keeps what is worth telling who started the comparison."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a note; what else is said is of one run and of its own folder."""
        if text.startswith("note: "):
            self.said.append(text.removeprefix("note: "))


@dataclass(frozen=True)
class LearnToken:
    """Stage 1 of several runs, in a run of its own."""

    place: Place
    name: str
    recipe: Recipe

    def run(self) -> dict[str, Any]:
        """Train, or go on with it."""
        with self.place.folder(self.name, FINISHED) as folder:
            return {"notes": _train(self.recipe, folder)}


@dataclass(frozen=True)
class MakeClassSamples:
    """Class images or predictions of several runs, for the cache."""

    place: Place
    name: str
    recipe: Recipe

    def run(self) -> dict[str, Any]:
        """Make what the cache lacks; how long it took stays on record, for those who will find it made."""
        with tempfile.TemporaryDirectory(prefix="twostage-") as folder:
            seconds = _class_seconds(self.recipe, Path(folder))
        stored = self.place.facts(f"{self.name}.json")
        seconds = max(seconds, stored.get("seconds", 0.0))
        self.place.write(f"{self.name}.json", json.dumps({"seconds": seconds}) + "\n")
        return {}


@dataclass(frozen=True)
class Train:
    """One run of the comparison.

    Attributes:
        token: name of the run that its stage 1 is taken from.
        samples: name of the class samples that it shares.
    """

    place: Place
    name: str
    recipe: Recipe
    token: str | None = None
    samples: str | None = None

    def run(self) -> dict[str, Any]:
        """Train, or go on with it, and count what others have done for it as if it had done that itself."""
        with self.place.folder(self.name, FINISHED) as folder:
            if self.token is None:
                notes = _train(self.recipe, folder)
            else:
                with self.place.folder(self.token) as parent:
                    notes = _train(self.recipe, folder, parent)
            self._count(folder)
        return {"notes": notes}

    def _count(self, folder: Path) -> None:
        run = RunFolder(folder)
        run.open()
        if "shared" in run.facts:
            return
        shared, seconds = {}, dict(run.facts["seconds"])
        if self.token is not None:
            shared["stage1"] = run.facts["from"]["seconds"]
            seconds["stage1"] = seconds.get("stage1", 0.0) + shared["stage1"]
        if self.samples is not None:
            stored = self.place.facts(f"{self.samples}.json")
            shared["prior"] = stored["seconds"]
            # It encodes them itself, as whoever made them did.
            seconds["prior"] = max(seconds.get("prior", 0.0), shared["prior"])
        run.update(seconds=seconds, shared=shared)


@dataclass(frozen=True)
class Evaluate:
    """The evaluation of one run."""

    place: Place
    name: str
    recipe: Recipe
    options: Evaluation

    def run(self) -> dict[str, Any]:
        """Draw and measure what is not there yet; checkpoints that nobody asked for have served."""
        notes = Notes()
        with self.place.folder(self.name, EVALUATION) as folder:
            evaluate(folder, self._own_options(notes), display=notes)
            RunFolder(folder).checkpoints.drop(self.recipe.checkpoints)
        return {"notes": notes.said}

    def _own_options(self, notes: Notes) -> Evaluation:
        """Without what this recipe has no use for, and others of the comparison have."""
        if self.recipe.stage2 or not self.options.strengths:
            return self.options
        notes.say("note: evaluated without --strength: a token alone was learned, and no weights that could be mixed")
        return self.options.model_copy(update={"strengths": ()})


@dataclass(frozen=True)
class Probe:
    """A measurement of how fast a recipe is on this machine."""

    name: str
    recipe: Recipe

    def run(self) -> dict[str, Any]:
        """Seconds a step of each stage, and of all that is done but once."""
        few = Checkpoints(every=10**6)
        update: dict[str, Any] = {"checkpoints": few}
        for name in ("stage1", "stage2"):
            if stage := getattr(self.recipe, name):
                update[name] = stage.model_copy(update={"steps": PROBE_STEPS})
        prior, images = self.recipe.prior, 0
        if prior.wanted:
            # A pass of the U-Net each is soon done, and less than reading the U-Net.
            few_enough = prior.num_class_images if prior.source == "photos" else prior.sample_batch_size
            images = min(prior.num_class_images, few_enough)
            update["prior"] = prior.model_copy(update={"num_class_images": images})
        with tempfile.TemporaryDirectory(prefix="twostage-") as temporary:
            # What is made already would look as if it cost nothing.
            with _cache_in(Path(temporary) / "cache"):
                folder = train(self.recipe.model_copy(update=update), Path(temporary) / "run", display=Display())
            facts = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        seconds = dict(facts["seconds"])
        steps = [json.loads(line) for line in lines]
        measured: dict[str, Any] = {
            f"stage{number}": median(
                step["seconds"] for step in steps if step["stage"] == number and step["step"] > WARM_UP
            )
            for number in {step["stage"] for step in steps}
        }
        sampling = seconds.pop("prior", 0.0) * (prior.num_class_images / images if images else 0)
        once = sum(value for name, value in seconds.items() if name not in ("stage1", "stage2", "checks"))
        return measured | {"once": once, "prior": sampling}


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Within it, the cache is another one."""
    before = os.environ.get("TWOSTAGE_CACHE")
    os.environ["TWOSTAGE_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TWOSTAGE_CACHE"]
        if before is not None:
            os.environ["TWOSTAGE_CACHE"] = before


def _train(recipe: Recipe, folder: Path, parent: Path | None = None) -> list[str]:
    """Train, from where an earlier worker stopped if one did; returns notes."""
    notes = Notes()
    begun = all((folder / name).is_file() for name in ("run.json", "recipe.toml"))
    if not begun:
        remove(folder)
    _forget_peak_memory()
    train(recipe, folder, resume=begun, token_from=None if begun else parent, display=notes)
    return notes.said


def _class_seconds(recipe: Recipe, folder: Path) -> float:
    """Make the recipe's class samples; the seconds that took."""
    session = Session(recipe, RunFolder(folder), Display())
    base, own = load_base(recipe.base), find_class_pictures(recipe)
    began = time.perf_counter()
    prepare_class(session, base, own)
    return time.perf_counter() - began


def _forget_peak_memory() -> None:
    """Else a run's would be the largest of all that its worker has done; torch does so itself on a GPU."""
    with suppress(OSError):  # Linux alone keeps it where it can be reset.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
