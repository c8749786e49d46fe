"""Runs of drawn subjects on the pocket model, for the benchmarks beside: photos, training, pictures.

For each subject: four photos to learn from, and photos in other contexts that no run sees ("unseen").
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from twostage import run
from twostage.demo import DRAWING, SEEN, take_photos
from twostage.display import Display
from twostage.evaluation.embedders import ViTEmbedder
from twostage.evaluation.judge import Judge
from twostage.families import load_base
from twostage.method.sampling import assemble, draw
from twostage.pocket import pocket_folder, world
from twostage.recipe import Recipe
from twostage.recipe_file import load_recipe

# Test subjects: drawn from seeds of their own, used to tune nothing.
TEST = {"sneaker": 901, "vase": 902, "toy robot": 903, "stuffed animal": 904, "cat": 905, "owl": 906}
TUNING = {"backpack": 11, "teapot": 12, "toy car": 13, "dog": 14}
UNSEEN = tuple(context for context in world.CONTEXTS if context not in SEEN)
PER_CONTEXT = 2


@dataclass(frozen=True)
class Photos:
    """Of one subject: to learn from, in contexts no run sees, and others in those."""

    folder: Path
    seen: list[Image.Image]
    unseen: list[Image.Image]
    more: list[Image.Image]


class Bench:
    """Models that every run needs, loaded once."""

    def __init__(self, folder: Path, overrides: dict[str, object]) -> None:
        self.folder, self.overrides = folder, overrides
        self.vit, self.judge = ViTEmbedder(pocket_folder("vit")), Judge(pocket_folder("judge"))
        self.base = load_base("pocket")

    def prompts(self, class_name: str, token: str | None) -> list[str]:
        return [world.prompt(class_name, context=c, token=token) for c in UNSEEN for _ in range(PER_CONTEXT)]

    def untouched(self, class_name: str) -> list[Image.Image]:
        return self.draw(assemble(self.base), self.prompts(class_name, None))

    def photos(self, class_name: str, subject_seed: int) -> Photos:
        """The subject's, drawn into a folder of its own."""
        subject = world.sample_subject(np.random.default_rng([subject_seed, 2024]), class_name)
        folder = self.folder / f"{class_name.replace(' ', '-')}-{subject_seed}"
        return Photos(
            folder,
            take_photos(folder / "photos", subject, SEEN, subject_seed),
            take_photos(folder / "unseen", subject, UNSEEN, subject_seed + 1),
            take_photos(folder / "more", subject, UNSEEN, subject_seed + 2),
        )

    def train(
        self, name: str, photos: Photos, class_name: str, seed: int, output: str, **options: object
    ) -> tuple[Recipe, StableDiffusionPipeline, float]:
        """Run the recipe `name` on the photos: it, what it taught, and the seconds it took."""
        overrides = {
            "data.photos": str(photos.folder / "photos"),
            "data.class_noun": class_name,
            "seed": seed,
            "sample.per_prompt": 0,
            **options,
            **self.overrides,
        }
        recipe = load_recipe(name, base="pocket", overrides=overrides)
        began = time.perf_counter()
        folder = run.train(recipe, photos.folder / output, display=Display())
        seconds = time.perf_counter() - began
        return recipe, run.load_pipeline(folder), seconds

    def draw(self, pipeline: StableDiffusionPipeline, prompts: list[str]) -> list[Image.Image]:
        """A picture each, of the seeds 0, 1, 2 ..."""
        return draw(pipeline, prompts, list(range(len(prompts))), DRAWING, self.base.resolution)


def write_report(path: Path, **figures: object) -> None:
    """Figures, and the machine they were measured on, as JSON."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n", encoding="utf-8")
