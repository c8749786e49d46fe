"""What the tests share: a tiny pipeline with random weights in stock layout, and four small photos."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks.random_sd15 import SIZES, write_pipeline
from twostage.display import Display
from twostage.processes import forget_accelerators
from twostage.recipe import Checkpoints, Data, Recipe, Sample, Stage1, Stage2, Token

# Files that take a minute and more: begun last, each would have the other processes wait for it.
_LONG = ("test_strategies.py", "test_comparison.py", "test_fuzz.py", "test_rehearsal.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where there are several processes, the longest files are begun first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusionPipeline` folder, 16x16 pixels; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_pipeline(folder, SIZES["tiny"])
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small photos of a thing, none like another; never write to it."""
    folder = tmp_path_factory.mktemp("photos")
    for index, colour in enumerate(("crimson", "teal", "gold", "navy")):
        photo = Image.new("RGB", (40, 32), "ivory")
        ImageDraw.Draw(photo).rectangle((4 + index, 6, 22 + index, 26 - index), fill=colour)
        photo.save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path, photos: Path) -> Recipe:
    """Both stages in a few steps of the tiny base; vary it with `model_copy(update=...)`."""
    return Recipe(
        name="tiny",
        base=str(tiny_base),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red"),
        stage1=Stage1(steps=6, learning_rate=5e-3, batch_size=2),
        stage2=Stage2(steps=6, learning_rate=1e-3, batch_size=2),
        sample=Sample(prompts=("a photo of a {} on the beach",), per_prompt=1, num_inference_steps=2),
        checkpoints=Checkpoints(every=4, keep=2),
    )


@pytest.fixture(scope="session")
def finished(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both stages, with a token of two vectors; never write to it."""
    from twostage.run import train

    torch.set_num_threads(1)
    recipe = Recipe(
        name="tiny",
        base=str(tiny_base),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red", num_vectors=2),
        stage1=Stage1(steps=6, learning_rate=5e-3, batch_size=2),
        stage2=Stage2(steps=6, learning_rate=1e-3, batch_size=2),
        sample=Sample(prompts=("a photo of a {}", "snow"), per_prompt=2, num_inference_steps=2),
        checkpoints=Checkpoints(every=4, keep=2),
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "finished", display=Display())


@pytest.fixture(scope="session", autouse=True)
def _no_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of a whole session leave in the cache is not left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTAGE_CACHE", str(tmp_path_factory.mktemp("session") / "cache"))
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, empty and not even made yet."""
    folder = tmp_path_factory.mktemp("user") / "cache"
    monkeypatch.setenv("TWOSTAGE_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _imports_are_no_garbage() -> None:
    """Each run collects garbage a few times, and would look through all that was ever imported: half of a tiny run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_accelerator_yet() -> None:
    """Each would take the precision of the one that another test has made."""
    forget_accelerators()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run beside each other; sums in another order would also be other bits."""
    torch.set_num_threads(1)
