"""One trial: a candidate trained on an individual's photos, measured at the steps that are asked for."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.trials.measuring import DRAWING, Examiner, filled, keep, questionnaire
from benchmarks.trials.subjects import Photos, photograph
from twostage import run, stages
from twostage.display import Display
from twostage.families import load_base
from twostage.method.kernels import interpreted
from twostage.method.precision import drawn_in
from twostage.method.sampling import assemble, draw
from twostage.recipe_file import load_recipe
from twostage.subject.captions import subject_phrase

Option = Callable[[], AbstractContextManager[Any]]
# Run folder, prompts as asked, prompts with the class alone, seeds -> pictures.
Drawing = Callable[[Path, Sequence[str], Sequence[str], Sequence[int]], list[Image.Image]]
_NEVER = 10**9


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is tried.

    Attributes:
        name: of a folder, too.
        recipe: shipped one that it varies.
        options: of the recipe, in its own dotted names.
        at: steps of stage 2, or of stage 1 where there is no other, that are measured; the last one alone when empty.
        parent: candidate whose token it takes; stage 1 is then the parent's.
        within: makes the package do something that it cannot; see `options`.
        prepare: class noun and photos -> more options of the recipe.
        after: candidate whose result is drawn in another way, in place of any training.
        drawing: that way.
        subject_only: whether that way is the usual one for prompts without the token.
    """

    name: str
    recipe: str = "two-stage"
    options: Mapping[str, object] = field(default_factory=dict)
    at: tuple[int, ...] = ()
    parent: str | None = None
    within: Option = nullcontext
    prepare: Callable[[Photos], Mapping[str, object]] = lambda photos: {}
    after: str | None = None
    drawing: Drawing | None = None
    subject_only: bool = False


@dataclass(frozen=True)
class Job:
    """A candidate on one individual, with one training seed."""

    candidate: str
    class_noun: str
    individual: int
    seed: int

    @property
    def where(self) -> str:
        return f"{self.candidate}/{self.class_noun.replace(' ', '-')}-{self.individual}-{self.seed}"


class Trials:
    """All trials of one folder.

    Args:
        folder: of photos, runs, pictures of the base and records.
        candidates: every one that a job or another candidate can name.
    """

    def __init__(self, folder: Path, candidates: Sequence[Candidate]) -> None:
        self.folder = folder.absolute()
        self._candidates = {candidate.name: candidate for candidate in candidates}
        self._examiner = Examiner()

    def record(self, job: Job) -> Path:
        return self.folder / "records" / f"{job.where}.json"

    def do(self, job: Job) -> None:
        """Carry it out, and what it builds on, unless that was done."""
        with self._alone(job):
            if self.record(job).exists():
                return
            candidate = self._candidates[job.candidate]
            photos = photograph(self.folder / "photos", job.class_noun, job.individual)
            for needed in filter(None, (candidate.parent, candidate.after)):
                self.do(Job(needed, job.class_noun, job.individual, job.seed))
            points = self._redraw(candidate, job, photos) if candidate.drawing else self._train(candidate, job, photos)
            keep(self.record(job), {"job": vars(job), "points": points})

    @contextmanager
    def _alone(self, job: Job) -> Iterator[None]:
        file = self.folder / "locks" / f"{job.where.replace('/', '--')}"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _run_folder(self, job: Job) -> Path:
        return self.folder / "runs" / job.where

    def _train(self, candidate: Candidate, job: Job, photos: Photos) -> list[dict[str, Any]]:
        place = self._run_folder(job)
        shutil.rmtree(place, ignore_errors=True)  # What was killed begins anew: its seconds would not be right.
        recipe = load_recipe(candidate.recipe, base="pocket", overrides=self._options(candidate, job, photos))
        stage = recipe.stage2 or recipe.stage1
        assert stage
        watch = _Watch(self, job, photos, {*candidate.at, stage.steps}, 2 if recipe.stage2 else 1)
        parent = None
        if candidate.parent:
            parent = self._run_folder(Job(candidate.parent, job.class_noun, job.individual, job.seed))
        with patch.object(stages, "_sampler", watch.sampler), candidate.within():
            run.train(recipe, place, token_from=parent, display=Display())
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        if all(other.after != candidate.name for other in self._candidates.values()):
            for weights in ("unet", "adapter"):
                shutil.rmtree(place / weights, ignore_errors=True)
        facts = json.loads((place / "run.json").read_text(encoding="utf-8"))
        before = sum(facts["seconds"].get(name, 0.0) for name in ("load", "encode_photos", "encode_prompts", "checks"))
        before += self._class_images(recipe, facts["seconds"].get("prior", 0.0), job)
        if parent:
            before += json.loads((parent / "run.json").read_text(encoding="utf-8"))["seconds"]["stage1"]
        for point in watch.points:
            point["seconds"] += before + facts["seconds"].get("save", 0.0)
        return watch.points

    def _options(self, candidate: Candidate, job: Job, photos: Photos) -> dict[str, object]:
        stage = "stage2" if "textual" not in candidate.recipe else "stage1"
        return {
            "data.photos": str(photos.seen),
            "data.class_noun": job.class_noun,
            "seed": job.seed,
            "sample.prompts": tuple(dict.fromkeys(one.template for one in questionnaire(job.class_noun))),
            "sample.per_prompt": 8,
            "checkpoints.every": _NEVER,
            "checkpoints.at": candidate.at,
            **({f"{stage}.steps": max(candidate.at)} if candidate.at else {}),
            **candidate.options,
            **candidate.prepare(photos),
        }

    def _class_images(self, recipe: Any, seconds: float, job: Job) -> float:
        """Seconds that they took when they were made, which a run that finds them in the cache would not have."""
        if not recipe.prior.wanted:
            return 0.0
        known = f"{recipe.prior.source}-{recipe.prior.num_class_images}-{job.class_noun.replace(' ', '-')}-{job.seed}"
        file = self.folder / "class-images" / f"{known}.json"
        if not file.exists():
            keep(file, {"seconds": seconds})
        return float(json.loads(file.read_text(encoding="utf-8"))["seconds"])

    def _redraw(self, candidate: Candidate, job: Job, photos: Photos) -> list[dict[str, Any]]:
        assert candidate.after and candidate.drawing
        before = Job(candidate.after, job.class_noun, job.individual, job.seed)
        asked = questionnaire(job.class_noun)
        _, recipe = run.open_finished(self._run_folder(before))
        phrase = subject_phrase(recipe.token, recipe.data)
        kept = self.drawn(before) if candidate.subject_only else []
        missing = [one for one in asked if not kept or "{}" in one.template]
        seeds = [one.seed for one in missing]
        drawn = candidate.drawing(
            self._run_folder(before), filled(missing, phrase), filled(missing, job.class_noun), seeds
        )
        anew = dict(zip((asked.index(one) for one in missing), drawn, strict=True))
        drawn = [anew[place] if place in anew else kept[place] for place in range(len(asked))]
        told = json.loads(self.record(before).read_text(encoding="utf-8"))["points"][-1]
        figures = self.examine(photos, drawn)
        return [{"stage": told["stage"], "step": told["step"], "seconds": told["seconds"], "figures": figures}]

    def drawn(self, job: Job) -> list[Image.Image]:
        """The questionnaire's pictures, as a finished trial drew them last."""
        folder = max(self._run_folder(job).glob("samples/*/"))
        files = [folder / f"prompt{row}-{column}.png" for row in range(1, 6) for column in range(1, 9)]
        return [Image.open(file).convert("RGB") for file in files]

    def examine(self, photos: Photos, drawn: Sequence[Image.Image]) -> dict[str, list[float]]:
        return self._examiner.examine(photos, drawn, self.base_pictures(photos.class_noun))

    @cache  # noqa: B019  One object a process.
    def base_pictures(self, class_noun: str) -> list[Image.Image]:
        """What the untouched base draws, with the class in the token's place."""
        file = self.folder / "base" / f"{class_noun.replace(' ', '-')}.npy"
        if not file.exists():
            asked = questionnaire(class_noun)
            base = load_base("pocket")
            prompts, seeds = filled(asked, class_noun), [one.seed for one in asked]
            drawn = draw(assemble(base), prompts, seeds, DRAWING, base.resolution)
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f"{file.stem}-{id(drawn)}.npy")
            np.save(temporary, np.stack([np.asarray(picture) for picture in drawn]))
            temporary.replace(file)
        return [Image.fromarray(pixels) for pixels in np.load(file)]


class _Watch:
    """Draws the questionnaire at the steps wanted, with the nets as training has them, and measures it."""

    def __init__(self, trials: Trials, job: Job, photos: Photos, steps: set[int], stage: int) -> None:
        self._trials, self._job, self._photos, self._steps, self._stage = trials, job, photos, steps, stage
        self.points: list[dict[str, Any]] = []

    def sampler(self, session: Any, base: Any, subject: Any, encode: Any, **live: Any) -> Callable[[], Any]:
        asked = questionnaire(self._job.class_noun)
        of_recipe = session.recipe.sample.model_dump(include={"class_guidance", "away_from"})
        how = DRAWING.model_copy(update=of_recipe)
        told = list(zip(filled(asked, subject.phrase), filled(asked, self._job.class_noun), strict=True))
        seeds = [one.seed for one in asked]
        # What training does not have at hand, `generate` reads.
        untouched = load_base("pocket").denoiser if how.away_from == "base" else None

        def draw_samples() -> list[Image.Image]:
            log = (session.folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            lines = [json.loads(line) for line in log]
            stage, step = lines[-1]["stage"], lines[-1]["step"]
            if stage != self._stage or step not in self._steps:
                return [Image.new("RGB", (8, 8))] * 8
            pipeline = assemble(base, unet=base.denoiser, **live or {"text_encoder": None, "tokenizer": None})
            with interpreted(base.denoiser), drawn_in(base.denoiser, session.device):
                states, side = None if live else encode, base.resolution
                drawn = draw(pipeline, told, seeds, how, side, encode=states, untouched=untouched)
            figures = self._trials.examine(self._photos, drawn)
            seconds = sum(line["seconds"] for line in lines)
            self.points.append({"stage": stage, "step": step, "seconds": seconds, "figures": figures})
            return drawn

        return draw_samples
