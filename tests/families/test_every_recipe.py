"""Every recipe that ships on a base of every family; a family without a base in its test fails here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.families.tiny import writers
from twostage import run
from twostage.display import Display
from twostage.families import known_families, load_base
from twostage.recipe_file import load_recipe, shipped_recipes

# What a run of a recipe leaves, by the recipe's name: whether there is a token, and the whole denoiser or its adapter.
LEAVES = {
    "two-stage": ("embedding", "whole"),
    "dreambooth": ("whole",),
    "textual-inversion": ("embedding",),
    "two-stage-lora": ("embedding", "adapter"),
    "dreambooth-lora": ("adapter",),
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory):
    """The base of a name, written once."""
    there: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in there:
            there[name] = tmp_path_factory.mktemp("bases") / name
            writers()[name](there[name])
        return there[name]

    return base


def test_every_family_has_a_base_here(base_of) -> None:
    assert {load_base(str(base_of(name))).family.pipeline for name in writers()} == set(known_families())
    assert set(LEAVES) == set(shipped_recipes())


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("kind", writers())
def test_a_recipe_trains_on_a_family_and_stock_diffusers_draws_the_same_picture(
    kind: str, name: str, base_of, photos: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(name, overrides=shortened(name) | {"base": str(base_of(kind)), "data.photos": str(photos)})
    folder = run.train(recipe, tmp_path / "run", display=Display())
    family = load_base(recipe.base).family
    moved = {
        "embedding": folder / "embedding",
        "whole": folder / family.denoiser,
        "adapter": folder / "adapter" / family.denoiser,
    }
    assert {leaves for leaves, path in moved.items() if path.is_dir()} == set(LEAVES[name])
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert facts["finished"] and not re.search("failed", json.dumps(facts["checks"]))
    if "embedding" in LEAVES[name]:
        (file,) = (folder / "embedding").iterdir()
        learned = load_file(file)
        assert len(learned) == len(family.text)
        assert all(torch.isfinite(rows).all() for rows in learned.values())

    # The card's own words: what a user of diffusers would run.
    told: dict[str, object] = {}
    exec(python_of(folder / "README.md", tmp_path / "stock.png"), told)
    drawn = run.generate(
        folder,
        "a photo of a {}",
        count=1,
        seed=0,
        num_inference_steps=4,
        guidance_scale=5.0,
        class_guidance=0.0,
        away_from="own",
        display=Display(),
    )
    theirs = told["picture"].images[0]
    ours, stock = (np.asarray(picture, np.int16) for picture in (drawn[0], theirs))
    # Where tensors lie in memory can move a rounding, and that a colour by one of 255.
    assert ours.shape == stock.shape and abs(ours - stock).max() <= 1 and stock.std() > 1


def shortened(name: str) -> dict[str, object]:
    """Two steps of each stage, and small priors and samples."""
    stages = [number for number in (1, 2) if getattr(load_recipe(name), f"stage{number}") is not None]
    return {
        "data.class_noun": "backpack",
        "token.num_vectors": 2 if name == "two-stage-lora" else 1,
        "sample.prompts": ["a photo of a {}"],
        "sample.per_prompt": 1,
        "sample.num_inference_steps": 2,
        "sample.class_guidance": 0.5,
        "prior.num_class_images": 2,
        "prior.num_inference_steps": 2,
        **{f"stage{number}.steps": 2 for number in stages},
        **{f"stage{number}.batch_size": 2 for number in stages},
        **{f"stage{number}.learning_rate": 1e-3 for number in stages},
    }


def python_of(card: Path, picture: Path) -> str:
    """The card's code for diffusers, which draws in four steps and writes its picture to `picture`."""
    code = re.search(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)[1]
    code = code.replace("generator=generator)", "generator=generator, num_inference_steps=4, guidance_scale=5.0)")
    return code.replace("'picture.png'", repr(str(picture)))
