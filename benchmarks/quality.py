"""Does the default recipe learn the subject, and does the rest of the prompt still count? On the pocket model.

    python benchmarks/quality.py runs/quality --json benchmarks/results/quality.json

For each subject: four photos to learn from, and photos in other contexts that no run sees ("unseen"). Three sets of
pictures are compared with the unseen photos by the ViT score (mean pairwise cosine): what the untouched model draws
for the class, what the trained one draws with the token, and further real photos. The share of the way from the first
to the third that training went is the gap closed. The judge reads the context off the trained model's pictures.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tomllib
from dataclasses import asdict, dataclass
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
from twostage.evaluation.metrics.identity import gap_closed, identity
from twostage.evaluation.sheet import Row, contact_sheet
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
class Result:
    """One run: ViT scores on unseen photos, shares of pictures read as asked, seconds of training."""

    subject: str
    seed: int
    untouched: float
    trained: float
    real: float
    gap_closed: float
    context: float
    class_kept: float
    seconds: float


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

    def measure(self, class_name: str, subject_seed: int, seed: int) -> Result:
        photos = self.photos(class_name, subject_seed)
        recipe, pipeline, seconds = self.train("two-stage", photos, class_name, seed, f"run-{seed}")
        pictures = self.draw(pipeline, self.prompts(class_name, recipe.token.placeholder))
        before = self.untouched(class_name)
        references = self.vit.images(photos.unseen)
        scores = [identity(self.vit.images(shown), references) for shown in (before, pictures, photos.more)]
        read = self.judge.read(pictures)
        asked = [context for context in UNSEEN for _ in range(PER_CONTEXT)]
        contact_sheet(
            [
                Row("photos", photos.seen),
                Row("unseen photos", photos.unseen),
                Row("untouched", before[::PER_CONTEXT]),
                Row("trained", pictures[::PER_CONTEXT], UNSEEN),
            ]
        ).save(photos.folder / f"sheet-{seed}.png")
        return Result(
            class_name,
            seed,
            *scores,
            gap_closed=gap_closed(scores[1], scores[0], scores[2]),
            context=float(np.mean([a == b for a, b in zip(read["context"], asked, strict=True)])),
            class_kept=float(np.mean([name == class_name for name in read["class"]])),
            seconds=seconds,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tuning", action="store_true", help="the subjects that settings may be tuned on")
    parser.add_argument("--subjects", nargs="+", help="only these")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="""recipe options as in TOML: 'stage2.steps'=200"""
    )
    arguments = parser.parse_args()
    bench = Bench(arguments.folder, tomllib.loads("\n".join(arguments.set)))
    chosen = TUNING if arguments.tuning else TEST
    print("| subject | seed | untouched | trained | real | gap closed | context | class | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for class_name, subject_seed in chosen.items():
        for seed in arguments.seeds if not arguments.subjects or class_name in arguments.subjects else ():
            result = bench.measure(class_name, subject_seed, seed)
            results.append(result)
            cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in asdict(result).values())
            print(f"| {' | '.join(cells)} |", flush=True)
    keys = ("gap_closed", "context", "class_kept", "seconds")
    means = {key: float(np.mean([getattr(result, key) for result in results])) for key in keys}
    print(
        f"\nmean: {means['gap_closed']:.0%} of the gap closed, context accuracy {means['context']:.0%}, "
        f"class {means['class_kept']:.0%}, {means['seconds']:.0f} s of training"
    )
    if arguments.json:
        write_report(arguments.json, means=means, runs=[asdict(result) for result in results])


def write_report(path: Path, **figures: object) -> None:
    """Figures, and the machine they were measured on, as JSON."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
