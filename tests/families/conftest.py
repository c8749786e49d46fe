"""What the tests of the families share: tiny bases of Stable Diffusion XL and 3, and a run of the first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.random_bases import stable_diffusion_3
from benchmarks.random_bases.stable_diffusion_xl import SIZES, write_pipeline
from twostage.display import Display
from twostage.recipe import Checkpoints, Data, Recipe, Sample, Stage1, Stage2, Token
from twostage.run import train


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusionXLPipeline` folder, 32x32 pixels; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "xl"
    write_pipeline(folder, SIZES["tiny"])
    return folder


@pytest.fixture(scope="session")
def xl_recipe(xl_folder: Path, photos: Path) -> Recipe:
    """Both stages, text encoders in the second one, and a token of two vectors."""
    return Recipe(
        name="xl",
        base=str(xl_folder),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red", num_vectors=2),
        stage1=Stage1(steps=4, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2, train_text_encoder=True),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=3, keep=2),
    )


@pytest.fixture(scope="session")
def xl_run(xl_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never write to it."""
    torch.set_num_threads(1)
    return train(xl_recipe, tmp_path_factory.mktemp("runs") / "xl", display=Display())


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusion3Pipeline` folder, 32x32 pixels; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "sd3"
    stable_diffusion_3.write_pipeline(folder, stable_diffusion_3.SIZES["tiny"])
    return folder


@pytest.fixture(scope="session")
def sd3_without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and its index says that there is no T5; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "without"
    stable_diffusion_3.write_pipeline(folder, stable_diffusion_3.SIZES["tiny"], t5=False)
    return folder
