"""What to teach a style with: two-coloured prints that the pocket model has never seen, four of them to learn from.

python -m benchmarks.trials.style FOLDER [--table benchmarks/results/default_recipe.json]

Each style is a pair of inks: of every picture it keeps light and dark alone. Learned from four pictures of different
things; asked for on the other eight classes, in two contexts each. Measured: how far off the inks colours are (mean
distance in RGB, 1 is from black to white), how often the classifier still reads class and context off the picture's
light and dark, and how far eight unrelated pictures drift.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # Before torch is imported: a process a core.

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.trials.measuring import DRAWING
from benchmarks.trials.subjects import UNSEEN
from benchmarks.trials.tables import put
from twostage import run
from twostage.demo import SEEN
from twostage.display import Display
from twostage.evaluation.bootstrap import hierarchical
from twostage.evaluation.embedders import ViTEmbedder
from twostage.evaluation.judge import Judge
from twostage.evaluation.suites import load_unrelated
from twostage.families import load_base
from twostage.method.sampling import assemble, draw
from twostage.pocket import pocket_folder, world
from twostage.recipe_file import load_recipe

# Dark and light ink.
STYLES = {
    "blueprint": ((18, 38, 120), (214, 232, 250)),
    "rust": ((92, 24, 12), (255, 226, 160)),
    "moss": ((10, 60, 34), (232, 244, 150)),
    "plum": ((70, 10, 84), (255, 190, 214)),
}
SHOWN = world.CLASSES[:4]
CONTEXTS = UNSEEN[:2]
FIGURES = ("off_the_inks", "class_read", "context_read", "drift_unrelated")


@dataclass(frozen=True)
class Way:
    """How it is taught: a recipe, options, and whether each picture's caption says what is on it."""

    recipe: str
    captions: bool
    options: dict[str, object] = field(default_factory=dict)


WAYS = {
    "two-stage": Way("two-stage", False),
    "two-stage, captions": Way("two-stage", True),
    "two-stage, captions, no prior": Way("two-stage", True, {"prior.preserve": False}),
    "textual-inversion, captions": Way("textual-inversion", True),
    "dreambooth, captions, no prior": Way("dreambooth", True, {"prior.preserve": False, "stage2.learning_rate": 2e-5}),
    "two-stage-lora, captions": Way("two-stage-lora", True),
}


def printed(picture: Image.Image, style: str) -> Image.Image:
    dark, light = STYLES[style]
    return ImageOps.colorize(picture.convert("L"), dark, light)


def photograph(folder: Path, style: str, captions: bool) -> Path:
    """Four prints, each of another class in another context."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, context) in enumerate(zip(SHOWN, SEEN, strict=True), start=1):
        rng = np.random.default_rng([number, 77])
        scene = world.sample_scene(rng, name in world.LIVE, context=context, plain=True)
        subject = world.sample_subject(rng, name)
        printed(world.draw(subject, scene), style).save(folder / f"{number}.png")
        if captions:
            text = world.prompt(name, context=context).replace("a photo", "a {}")
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def prompts(word: str) -> list[str]:
    classes = [name for name in world.CLASSES if name not in SHOWN]
    return [world.prompt(name, context=context, style=word) for name in classes for context in CONTEXTS]


def off_the_inks(picture: Image.Image, style: str) -> float:
    """Mean distance of colours from the line between the two inks; black to white is 1."""
    dark, light = (np.array(ink, dtype=float) for ink in STYLES[style])
    pixels, along = np.asarray(picture.convert("RGB"), dtype=float).reshape(-1, 3), light - dark
    share = ((pixels - dark) @ along / (along @ along)).clip(0, 1)[:, None]
    return float(np.linalg.norm(pixels - dark - share * along, axis=1).mean() / np.linalg.norm([255] * 3))


def measure(drawn: list[Image.Image], style: str) -> dict[str, list[float]]:
    """Of pictures drawn for `prompts`; the classifier sees their light and dark alone, as prints have no more."""
    read = Judge(pocket_folder("judge")).read([picture.convert("L").convert("RGB") for picture in drawn])
    classes = [name for name in world.CLASSES if name not in SHOWN for _ in CONTEXTS]
    contexts = list(CONTEXTS) * (len(drawn) // len(CONTEXTS))
    return {
        "off_the_inks": [off_the_inks(picture, style) for picture in drawn],
        "class_read": [float(said == right) for said, right in zip(read["class"], classes, strict=True)],
        "context_read": [float(said == right) for said, right in zip(read["context"], contexts, strict=True)],
    }


def by_base(texts: list[str]) -> list[Image.Image]:
    base = load_base("pocket")
    return draw(assemble(base), texts, list(range(len(texts))), DRAWING, base.resolution)


def teach(folder: Path, name: str, style: str) -> dict[str, list[float]]:
    """One way on one style."""
    torch.set_num_threads(1)
    way, place = WAYS[name], folder / "styles" / name.replace(", ", "-") / style
    shutil.rmtree(place, ignore_errors=True)
    recipe = load_recipe(
        way.recipe,
        base="pocket",
        overrides={
            "data.photos": str(photograph(place / "photos", style, way.captions)),
            "data.learnable": "style",
            "data.class_noun": "",
            "sample.per_prompt": 0,
            **way.options,
        },
    )
    finished = run.train(recipe, place / "run", display=Display())
    pipeline = run.load_pipeline(finished)
    word = recipe.token.placeholder
    # Templates that name no content end in the style, and that is how it is then asked for.
    asked = prompts(word) if way.captions else [f"{text} in the style of {word}" for text in prompts("photo")]
    drawn = draw(pipeline, asked, list(range(len(asked))), DRAWING, 64)
    unrelated = list(load_unrelated(pocket=True, class_noun="", first=8).prompts)
    encoder = ViTEmbedder(pocket_folder("vit"))
    after, before = (
        encoder.images(pictures)
        for pictures in (draw(pipeline, unrelated, list(range(8)), DRAWING, 64), by_base(unrelated))
    )
    figures = measure(drawn, style) | {"drift_unrelated": (1 - (after * before).sum(dim=1)).tolist()}
    for number, picture in enumerate(drawn):
        picture.save(place / f"{number:02d}.png")
    return figures


def limits(style: str) -> dict[str, dict[str, list[float]]]:
    """The untouched base, which knows no such style, and what it draws, printed in those inks: as good as can be."""
    torch.set_num_threads(1)
    drawn = by_base(prompts("photo"))
    best = measure([printed(picture, style) for picture in drawn], style)
    return {"untouched base": measure(drawn, style), "its pictures, printed so": best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, help="write the figures into this JSON")
    arguments = parser.parse_args()
    os.environ["TWOSTAGE_CACHE"] = str(arguments.folder.absolute() / "cache")
    found: dict[str, dict[tuple[str, int], dict[str, list[float]]]] = {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        known = {style: pool.submit(limits, style) for style in STYLES}
        taught = {(name, style): pool.submit(teach, arguments.folder, name, style) for name in WAYS for style in STYLES}
        for style, future in known.items():
            for name, figures in future.result().items():
                found.setdefault(name, {})[style, 0] = figures
        for (name, style), done in taught.items():
            found.setdefault(name, {})[style, 0] = done.result()
            print(f"{name}, {style}", flush=True)
    table: dict[str, Any] = {}
    for name, cells in found.items():
        table[name] = {"runs": len(cells)}
        for figure in FIGURES:
            if all(figure in figures for figures in cells.values()):
                told = hierarchical({cell: figures[figure] for cell, figures in cells.items()})
                table[name][figure] = [round(number, 4) for number in (told.value, told.low, told.high)]
        print(name, table[name], flush=True)
    if arguments.table:
        put(arguments.table, "styles", table)


if __name__ == "__main__":
    main()
