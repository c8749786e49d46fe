"""What does prior preservation keep, and what does it cost? On the pocket model.

    python benchmarks/prior.py runs/prior --json benchmarks/results/prior.json

DreamBooth's Table 3 (arXiv 2208.12242), in small: with and without prior preservation, by images and without.
PRES: how much pictures of the bare class look like the subject (ViT score against its photos); the untouched model's
is what the class owes to chance. DIV: how unlike each other those pictures are (1 - ViT cosine, pairwise; the paper
uses LPIPS). Identity, as the gap closed, and context accuracy with the token as in learned.py.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline
from learned import PER_CONTEXT, TEST, UNSEEN, Bench, Photos, write_report
from PIL import Image

from twostage.evaluation.metrics.identity import gap_closed, identity
from twostage.evaluation.sheet import Row, contact_sheet
from twostage.method.sampling import assemble
from twostage.pocket import world

CLASS_PICTURES = 32
# Whatever settings the recipe comes to have.
_SETTINGS = {"stage2.learning_rate": 5e-5, "prior.num_class_images": 64}
VARIANTS: dict[str, dict[str, object]] = {
    "no prior": {"prior.preserve": False, "stage2.learning_rate": 5e-5},
    "prior, images": {"prior.preserve": True, "prior.source": "images", **_SETTINGS},
    "prior, predictions": {"prior.preserve": True, "prior.source": "predictions", **_SETTINGS},
}


@dataclass(frozen=True)
class Result:
    """One run; `pres` lower is better, the others higher."""

    recipe: str
    variant: str
    subject: str
    pres: float
    diversity: float
    class_read: float
    gap_closed: float
    context: float
    seconds: float


class PriorBench(Bench):
    """Pictures of the bare class, before and after."""

    def class_scores(
        self, photos: Photos, class_name: str, pipeline: StableDiffusionPipeline
    ) -> tuple[dict[str, float], list[Image.Image]]:
        """PRES, DIV and the share the judge reads as the class; and the pictures."""
        pictures = self.draw(pipeline, [world.prompt(class_name)] * CLASS_PICTURES)
        embedded = self.vit.images(pictures)
        cosines = (embedded @ embedded.T).numpy()[~np.eye(len(embedded), dtype=bool)]
        return {
            "pres": identity(embedded, self.vit.images(photos.seen + photos.unseen)),
            "diversity": float(1 - cosines.mean()),
            "class_read": float(np.mean([name == class_name for name in self.judge.read(pictures)["class"]])),
        }, pictures

    def context_accuracy(self, pictures: list[Image.Image]) -> float:
        read = self.judge.read(pictures)["context"]
        return float(np.mean([name == UNSEEN[index // PER_CONTEXT] for index, name in enumerate(read)]))

    def measure_all(self, recipe_name: str, class_name: str, subject_seed: int) -> list[Result]:
        photos = self.photos(class_name, subject_seed)
        references = self.vit.images(photos.unseen)
        before = self.untouched(class_name)
        untouched = identity(self.vit.images(before), references)
        real = identity(self.vit.images(photos.more), references)
        scores, drawn = self.class_scores(photos, class_name, assemble(self.base))
        context = self.context_accuracy(before)
        results = [Result(recipe_name, "untouched", class_name, **scores, gap_closed=0, context=context, seconds=0)]
        rows = [Row("photos", photos.seen), Row("untouched: class", drawn[: len(UNSEEN)])]
        for variant, options in VARIANTS.items():
            output = f"{recipe_name}-{variant.replace(', ', '-').replace(' ', '-')}"
            recipe, pipeline, seconds = self.train(recipe_name, photos, class_name, 0, output, **options)
            pictures = self.draw(pipeline, self.prompts(class_name, recipe.token.placeholder))
            scores, drawn = self.class_scores(photos, class_name, pipeline)
            rows += [
                Row(f"{variant}: token", pictures[::PER_CONTEXT], UNSEEN),
                Row(f"{variant}: class", drawn[: len(UNSEEN)]),
            ]
            results.append(
                Result(
                    recipe_name,
                    variant,
                    class_name,
                    **scores,
                    gap_closed=gap_closed(identity(self.vit.images(pictures), references), untouched, real),
                    context=self.context_accuracy(pictures),
                    seconds=seconds,
                )
            )
        contact_sheet(rows).save(photos.folder / f"prior-{recipe_name}.png")
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["dreambooth"])
    parser.add_argument("--subjects", nargs="+", choices=TEST, default=list(TEST))
    arguments = parser.parse_args()
    bench = PriorBench(arguments.folder, {})
    results: list[Result] = []
    for recipe in arguments.recipes:
        for subject in arguments.subjects:
            results += bench.measure_all(recipe, subject, TEST[subject])
            print(f"{recipe}: {subject} measured", flush=True)
    figures = ("pres", "diversity", "class_read", "gap_closed", "context", "seconds")
    print(f"\n| recipe | variant | {' | '.join(figures)} |\n|---|---|{'---|' * len(figures)}")
    means = []
    for recipe, variant in dict.fromkeys((result.recipe, result.variant) for result in results):
        chosen = [result for result in results if (result.recipe, result.variant) == (recipe, variant)]
        mean = {name: float(np.mean([getattr(result, name) for result in chosen])) for name in figures}
        means.append({"recipe": recipe, "variant": variant, **mean})
        print(f"| {recipe} | {variant} | {' | '.join(f'{value:.3g}' for value in mean.values())} |")
    if arguments.json:
        write_report(arguments.json, means=means, runs=[asdict(result) for result in results])


if __name__ == "__main__":
    main()
