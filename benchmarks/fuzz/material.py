"""What is damaged, while it is intact: photos, a base, runs, exports, a comparison and a cache, all tiny."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.random_sd15 import SIZES, write_pipeline
from twostage.comparing.check import photos_of
from twostage.comparing.place import Place
from twostage.comparing.plan import Cell, plan_cells, plan_variants
from twostage.comparing.record import Record
from twostage.comparing.request import ComparedSubject, Request
from twostage.display import Display, Update
from twostage.evaluating import evaluate
from twostage.export import Options
from twostage.exporting import export
from twostage.method.seeding import seeded
from twostage.pocket import pocket_folder
from twostage.recipe import Adapter, Checkpoints, Data, Prior, Recipe, Sample, Select, Stage1, Stage2, Token
from twostage.recipe_evaluation import Evaluation
from twostage.recipe_file import dump_recipe
from twostage.run import train

CLASS = "backpack"
EVALUATION = Evaluation(
    num_prompts=2,
    images_per_prompt=1,
    num_class_images=2,
    num_unrelated_images=1,
    num_inference_steps=1,
    encoders=("dino=pocket", "dinov2=none", "clip=none"),
)
SUITE = "# what to draw\na photo of a {} on the beach\na {} in the snow\na red {}\n"
CLASSES = "Classes\nsubject_name,class\nbag,backpack\ndog-2,dog\n\nPrompts\n"
LISTS = (
    "Object Prompts\nprompt_list = [\n'a {0} {1} in the snow'.format(unique_token, class_token),\n]\n"
    "Live Subject Prompts\nprompt_list = [\n'a {0} {1} in a hat'.format(unique_token, class_token),\n]\n"
)


class _Stopping(Display):
    """Presses Ctrl-C after a step of stage 2."""

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        def update(done: int, **numbers: float) -> None:
            if (label, done) == ("stage 2", 3):
                signal.raise_signal(signal.SIGINT)

        yield update


class Material:
    """Everything intact, below one folder.

    Attributes:
        folder: where it is; made by `make`.
        cached: content of the result of `cache_recipe`, which no damage to the cache may change.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recipe(self, **changes: object) -> Recipe:
        """Of both stages, a step each."""
        own = Recipe(
            name="tiny",
            base=str(self.folder / "base"),
            data=Data(photos=self.folder / "photos", class_noun=CLASS),
            token=Token(initializer="red"),
            stage1=Stage1(steps=1, learning_rate=5e-3, batch_size=2),
            stage2=Stage2(steps=1, learning_rate=1e-3, batch_size=2),
            sample=Sample(prompts=("a photo of a {}",), per_prompt=0, num_inference_steps=1),
        )
        return own.model_copy(update=changes)

    @property
    def long_recipe(self) -> Recipe:
        """With all that a checkpoint can hold."""
        return self.recipe(
            data=Data(photos=self.folder / "photos", class_noun=CLASS, held_out=(self.folder / "held-out.png",)),
            stage1=Stage1(steps=4, learning_rate=5e-3, batch_size=2),
            stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2, ema_decay=0.5),
            sample=Sample(prompts=("a photo of a {}",), per_prompt=1, num_inference_steps=1),
            checkpoints=Checkpoints(every=2, keep=2),
            select=Select(measure=True, encoders=("dino=pocket", "clip=none")),
        )

    @property
    def cache_recipe(self) -> Recipe:
        """Whose run takes latents and pictures of the class from the cache."""
        prior = Prior(preserve=True, num_class_images=3, num_inference_steps=1)
        return self.recipe(prior=prior, data=Data(photos=self.folder / "photos", class_noun=CLASS, flip=True))

    @property
    def path_recipe(self) -> Recipe:
        """Whose run takes predictions on the way to pictures of the class from the cache."""
        prior = Prior(preserve=True, source="predictions", num_class_images=3, num_inference_steps=2, states_per_path=2)
        return self.recipe(prior=prior)

    def make(self) -> None:
        """Write it all."""
        gc.freeze()  # Each run ends with a collection, which else would go through all that was imported.
        with seeded(0), patch.dict(os.environ):
            self._make()
        gc.unfreeze()

    def _make(self) -> None:
        os.environ["TWOSTAGE_CACHE"] = str(self.folder / "own-cache")
        write_pipeline(self.folder / "base", SIZES["tiny"])
        (self.folder / "photos").mkdir()
        for index in range(3):
            noise(index).save(self.folder / "photos" / f"{index}.png")
        noise(9).save(self.folder / "held-out.png")
        write_pictures(self.folder / "pictures")
        self._make_words()
        shutil.copytree(pocket_folder("vit"), self.folder / "encoder")
        self._make_runs()
        self._make_comparison()
        os.environ["TWOSTAGE_CACHE"] = str(self.folder / "cache")
        for name, recipe in (("cached", self.cache_recipe), ("cached-paths", self.path_recipe)):
            train(recipe, self.folder / name, display=Display())
        evaluate(
            self.folder / "runs" / "two-stage", EVALUATION, output=self.folder / "cached-evaluation", display=Display()
        )

    def _make_words(self) -> None:
        words = self.folder / "words"
        words.mkdir()
        (words / "suite.txt").write_text(SUITE, encoding="utf-8")
        (words / "prompts.txt").write_text(LISTS, encoding="utf-8")
        (self.folder / "data-set" / "bag").mkdir(parents=True)
        (self.folder / "data-set" / "prompts_and_classes.txt").write_text(CLASSES + LISTS, encoding="utf-8")
        (words / "recipe.toml").write_text(dump_recipe(self.recipe()), encoding="utf-8")

    def _make_runs(self) -> None:
        adapters = {
            "lora": Adapter(rank=2),
            "dora": Adapter(kind="dora", rank=2),
            "loha": Adapter(kind="loha", rank=2),
            "oft": Adapter(kind="oft", rank=2),
        }
        runs = {"two-stage": self.recipe(), "token": self.recipe(stage2=None)}
        runs["both"] = self.recipe(stage2=Stage2(steps=1, learning_rate=1e-3, batch_size=2, train_text_encoder=True))
        stage2 = Stage2(steps=3, learning_rate=1e-3, batch_size=2, train="adapter")
        runs |= {name: self.recipe(stage2=stage2, adapter=adapter) for name, adapter in adapters.items()}
        for name, recipe in runs.items():
            train(recipe, self.folder / "runs" / name, display=Display())
        evaluate(self.folder / "runs" / "two-stage", EVALUATION, display=Display())
        try:
            train(self.long_recipe, self.folder / "interrupted", display=_Stopping())
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("it was to be interrupted")
        given = self.folder / "given"
        export(self.folder / "runs" / "two-stage", "delta", given / "whole", Options(), display=Display())
        export(self.folder / "runs" / "lora", "delta", given / "adapter", Options(), display=Display())
        export(self.folder / "runs" / "lora", "lora", given / "lora", Options(), display=Display())
        export(self.folder / "runs" / "token", "embedding", given / "embedding", Options(), display=Display())

    def request(self) -> tuple[Request, list[Cell]]:
        """The comparison, and its runs."""
        request = Request(
            recipes=(str(self.folder / "words" / "recipe.toml"),),
            subjects=(ComparedSubject(photos=self.folder / "photos", class_noun=CLASS),),
            seeds=(0, 1),
            evaluation=EVALUATION,
        )
        return request, plan_cells(request, plan_variants(request))

    def _make_comparison(self) -> None:
        root = self.folder / "comparison"
        request, cells = self.request()
        Record(Place(str(root))).begin(
            request, cells, command="twostage compare", threads=1, steps={}, photos=photos_of(cells)
        )
        for cell in cells:
            train(cell.recipe, root / "runs" / cell.name, display=Display())
            evaluate(root / "runs" / cell.name, EVALUATION, display=Display())


def noise(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture like no other's."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def write_pictures(folder: Path) -> None:
    """Photos of every common format, with a caption, a mask, and a sub-folder of repeats."""
    (folder / "5_portraits").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    noise(0).save(folder / "a.jpg", exif=exif)
    noise(1).save(folder / "b.png")
    noise(2).save(folder / "c.webp", exif=exif)
    noise(3).save(folder / "d.tif")
    noise(4).convert("P").save(folder / "e.gif")
    noise(5).convert("RGBA").save(folder / "f.png")
    noise(6).save(folder / "5_portraits" / "g.jpg", progressive=True)
    Image.new("L", (40, 32), 200).save(folder / "b-masklabel.png")
    (folder / "a.txt").write_text("a photo of a {} on a table\n", encoding="utf-8")
    (folder / "5_portraits" / "g.txt").write_text("a {} seen from the side\n", encoding="utf-8")
