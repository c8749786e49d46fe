"""A folder with small recipes of the tiny base, and requests for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twostage.comparing import ComparedSubject, Request
from twostage.pocket import pocket_folder
from twostage.recipe_evaluation import Evaluation

BOTH = """
[token]
initializer = "red"
[stage1]
steps = 6
learning_rate = 5e-3
batch_size = 2
[stage2]
steps = 4
learning_rate = 1e-3
batch_size = 2
"""
DENOISER = """
[token]
placeholder = "sks"
[stage2]
steps = 4
learning_rate = 1e-3
batch_size = 2
[prior]
preserve = true
num_class_images = 2
num_inference_steps = 2
"""
EVERY = """
[checkpoints]
every = 2
[sample]
num_inference_steps = 2
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """thing/, other/: photos; both.toml, other.toml, word.toml: recipes; suite.txt. Never write to it."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("thing", "other"):
        shutil.copytree(photos, folder / name)
    (folder / "both.toml").write_text(BOTH + EVERY)
    (folder / "adapted.toml").write_text(BOTH + 'train = "adapter"\n' + EVERY)
    (folder / "word.toml").write_text(DENOISER + EVERY)
    (folder / "embedding.toml").write_text(BOTH.split("[stage2]")[0] + EVERY)
    (folder / "suite.txt").write_text("a {} on the beach\na {} in the snow\n")
    return folder


@pytest.fixture(scope="session")
def evaluation(world: Path) -> Evaluation:
    """Few small pictures, seen by the bundled encoders."""
    return Evaluation(
        suite=str(world / "suite.txt"),
        images_per_prompt=1,
        num_class_images=2,
        num_unrelated_images=0,
        encoders=(f"dino={pocket_folder('vit')}", f"clip={pocket_folder('clip')}", "dinov2=none"),
    )


@pytest.fixture(scope="session")
def ask(world: Path, tiny_base: Path, evaluation: Evaluation) -> Callable[..., Request]:
    """A request for recipes of the world, on one subject unless told otherwise."""

    def request(*recipes: str, **changes: Any) -> Request:
        asked: dict[str, Any] = {
            "recipes": tuple(str(world / f"{name}.toml") for name in recipes),
            "subjects": (ComparedSubject(photos=world / "thing", class_noun="backpack"),),
            "overrides": {"base": str(tiny_base)},
            "evaluation": evaluation,
        }
        return Request(**(asked | changes))

    return request
