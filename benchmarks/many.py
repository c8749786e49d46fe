"""Many photos, prompts, runs and kept files, made up on the spot: for load.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.random_sd15 import SIZES, write_pipeline
from twostage import run as verbs
from twostage.cache import Shelf
from twostage.display import Display
from twostage.evaluating import evaluate
from twostage.recipe import Checkpoints, Data, Recipe, Sample, Stage1, Stage2, Token
from twostage.recipe_evaluation import Evaluation

# 64 pixels a side to 12 megapixels.
SIDES = (
    (64, 64), (96, 64), (160, 120), (256, 256), (300, 400), (512, 512),
    (640, 480), (600, 800), (1024, 768), (1200, 1600), (2400, 1800), (4000, 3000),
)  # fmt: skip
_CAPTIONED, _MASKED = 3, 8
_SIDE = 64
_EVALUATION = Evaluation(
    num_prompts=8,
    images_per_prompt=2,
    num_class_images=8,
    num_unrelated_images=8,
    num_inference_steps=2,
    suite="pocket",
    encoders=("dino=pocket", "clip=pocket", "dinov2=none"),
)


def photos(folder: Path, count: int) -> Path:
    """Photos of mixed sizes, JPEG or PNG; a third with captions, an eighth with masks, every fiftieth a copy."""
    place = folder / "photos" / str(count)
    place.mkdir(parents=True, exist_ok=True)
    pool = folder / "photos" / "pool"
    pool.mkdir(exist_ok=True)
    for index in range(count):
        size = SIDES[index % len(SIDES)]
        name = f"{index:05}{'.png' if index % 5 == 0 and max(size) < 1200 else '.jpg'}"
        if not (pool / name).exists():
            _photo(index - 12 if index % 50 == 49 else index, size).save(pool / name, quality=90)
        made = [name]
        if index % _CAPTIONED == 0:
            made.append(f"{index:05}.txt")
            (pool / made[-1]).write_text(f"a photo of a {{}} number {index}", encoding="utf-8")
        if index % _MASKED == 0:
            made.append(f"{index:05}-masklabel.png")
            if not (pool / made[-1]).exists():
                mask = Image.new("L", size)
                mask.paste(255, (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
                mask.save(pool / made[-1])
        for one in made:
            if not (place / one).exists():
                os.link(pool / one, place / one)
    return place


def _photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """Structure at every scale, like no other's."""
    rng, picture = np.random.default_rng(seed), Image.new("RGB", (300, 300))
    for side, share in ((6, 1.0), (60, 0.4), (250, 0.35)):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        picture = Image.blend(picture, noise.resize(picture.size, Image.Resampling.BILINEAR), share)
    return picture.resize(size, Image.Resampling.BILINEAR)


def prompts(folder: Path, count: int) -> Path:
    """A suite of so many different prompts."""
    file = folder / f"prompts-{count}.txt"
    file.write_text("\n".join(f"a photo of a {{}} in place number {index}" for index in range(count)), encoding="utf-8")
    return file


def tiny_run(folder: Path, side: int = _SIDE) -> Path:
    """A finished run of both stages on a tiny random pipeline, of pictures of that side in pixels."""
    done = folder / f"tiny-run-{side}"
    if (done / "model_index.json").exists() or (done / "unet").is_dir():
        return done
    if not (folder / "tiny" / "model_index.json").exists():
        write_pipeline(folder / "tiny", SIZES["tiny"])
    few = folder / "few"
    few.mkdir(exist_ok=True)
    for index in range(5):
        _photo(index, (96, 96)).save(few / f"{index}.png")
    recipe = Recipe(
        name="two-stage",
        base=str(folder / "tiny"),
        data=Data(photos=few, class_noun="backpack", resolution=side),
        token=Token(initializer="red"),
        stage1=Stage1(steps=4, learning_rate=5e-3, batch_size=2),
        stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2),
        sample=Sample(prompts=("a photo of a {} on the beach",), per_prompt=2, num_inference_steps=2),
        checkpoints=Checkpoints(every=4, keep=1),
    )
    return verbs.train(recipe, done, display=Display())


def runs(folder: Path, count: int, strategies: int) -> Path:
    """Finished, evaluated runs: copies of one, `strategies` of them on every subject and seed.

    Each has its own names and figures; what is large (weights, pictures) is linked.
    """
    place = folder / f"runs-{count}-of-{strategies}"
    whole = place / "runs"
    if whole.is_dir() and len(list(whole.iterdir())) == count:
        return place
    shutil.rmtree(place, ignore_errors=True)
    first = tiny_run(folder)
    if not (first / "evaluation.json").exists():
        evaluate(first, _EVALUATION, display=Display())
    record = json.loads((first / "evaluation.json").read_text(encoding="utf-8"))
    for index in range(count):
        cell, strategy = divmod(index, strategies)
        run = whole / f"{index:04}"
        shutil.copytree(first, run, copy_function=os.link)
        _renamed(run, record, f"strategy-{strategy:03}", f"subject-{cell // 5:03}", cell % 5, index)
    (place / "compare.json").write_text("{}", encoding="utf-8")
    return place


def _renamed(run: Path, record: dict[str, Any], name: str, subject: str, seed: int, index: int) -> None:
    rng = np.random.default_rng(index)
    figures = {}
    for key, figure in record["figures"].items():
        values = [value + 0.02 * float(rng.normal()) for value in figure["values"]]
        figures[key] = {**figure, "values": values, "value": float(np.mean(values))}
    result = {**record["result"], "name": name, "recipe": name, "subject": subject, "seed": seed, "folder": str(run)}
    (run / "evaluation.json").unlink()  # A link to the one it was copied from.
    (run / "evaluation.json").write_text(json.dumps({**record, "result": result, "figures": figures}, indent=2))
    for kind in ("subject", "base_subject"):
        for number, file in enumerate(sorted((run / "evaluation" / kind).glob("*.png"))[:2]):
            file.unlink()  # Two of each run's pictures are like no other's.
            _photo(1000 * index + number, (_SIDE, _SIDE)).save(file)


def kept_files(count: int) -> None:
    """So many files in the cache, on shelves of a hundred; half of them in folders of a shelf, as embeddings are."""
    for start in range(0, count, 100):
        shelf = Shelf("latents" if start % 200 else "embeddings", ".bin", {"number": start})
        for index in range(start, min(start + 100, count)):
            shelf.put(f"{index % 7:02}/{index}" if start % 200 == 0 else index, b"x" * 64)
