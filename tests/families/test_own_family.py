"""A family of one's own, from outside the package: the one that the docs show, found by its entry point."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from benchmarks.random_sd15 import SIZES
from twostage import run
from twostage.display import Display
from twostage.errors import UserError
from twostage.families import known_families, load_base
from twostage.planning.rehearsal import rehearse
from twostage.quiet import quiet
from twostage.recipe import Recipe
from twostage.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install` leaves of a package that has the docs' module and entry point."""
    folder = tmp_path_factory.mktemp("site")
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    (folder / "pixels.py").write_text(re.search(r"<!-- pixels.py -->\n```python\n(.*?)```", page, re.DOTALL)[1])
    points = re.search(r'\[project.entry-points."(.*?)"\]\n(\w+) = "(\w+)"', page)
    info = folder / "pixels-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pixels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{points[1]}]\n{points[2]} = {points[3]}\n")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A tiny random one: the text encoder of the tiny Stable Diffusion, and a U-Net of 16 pixels and 3 channels."""
    folder = tmp_path_factory.mktemp("pixels") / "base"
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=SIZES["tiny"].text_width,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    with quiet():
        unet.save_pretrained(folder / "unet")
        DDIMScheduler().save_pretrained(folder / "scheduler")
    for name in ("text_encoder", "tokenizer"):
        os.symlink(tiny_base / name, folder / name)
    parts = {
        "_class_name": "PixelPipeline",
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Has Python look for packages in one more folder, and forgets the families that it found before and in it."""

    def look(folder: Path) -> None:
        monkeypatch.syspath_prepend(str(folder))
        known_families.cache_clear()

    yield look
    known_families.cache_clear()


def recipe(base: Path, photos: Path) -> Recipe:
    short = {"stage1.steps": 2, "stage2.steps": 2, "sample.num_inference_steps": 2, "data.class_noun": "backpack"}
    return load_recipe("two-stage", overrides={"base": str(base), "data.photos": str(photos), **short})


def test_a_family_from_another_package_trains_and_draws_by_its_entry_point_alone(
    package: Path, base: Path, photos: Path, tmp_path: Path, site: Callable[[Path], None]
) -> None:
    site(package)
    folder = run.train(recipe(base, photos), tmp_path / "run", display=Display())
    assert (folder / "unet").is_dir() and (folder / "embedding").is_dir()
    (picture,) = run.generate(folder, "a {}", count=1, num_inference_steps=2, display=Display())
    assert picture.size == (16, 16) and np.asarray(picture).std() > 0
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "from pixels import PixelPipeline" in card
    assert rehearse(recipe(base, photos)).phases


def test_without_it_the_base_is_refused_and_the_known_families_are_named(
    base: Path, photos: Path, tmp_path: Path, site: Callable[[Path], None]
) -> None:
    site(tmp_path)
    with pytest.raises(UserError, match="is a PixelPipeline, .*known are.*StableDiffusionXLPipeline"):
        run.train(recipe(base, photos), tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "why"),
    [("nothing_of_the_kind", "No module named"), ("json", "no attribute 'FAMILY'"), ("other", "is none")],
)
def test_a_package_whose_family_cannot_be_used_is_named(
    value: str, why: str, tmp_path: Path, tiny_base: Path, site: Callable[[Path], None]
) -> None:
    info = tmp_path / "site" / "other-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "other.py").write_text("FAMILY = 1\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[twostage.families]\nmine = {value}\n")
    site(tmp_path / "site")
    with pytest.raises(UserError, match=f"'mine' of {value} .*{why}.*uninstall"):
        load_base(str(tiny_base))
