"""Options that change what a sample shows or counts: runs keep their promises with each of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.watching import Watcher, assert_same_bits, ctrl_c, metrics, results, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Adapter, Checkpoints, Data, Prior, Recipe, Sample
from twostage.recipe_file import load_recipe
from twostage.run import generate, train
from twostage.subject.token_files import load_embedding

STAGED: dict[str, dict[str, Any]] = {
    "min-SNR": {"snr_gamma": 5.0},
    "offset noise": {"noise_offset": 0.1},
    "average": {"ema_decay": 0.7},
}
SHOWN: dict[str, dict[str, Any]] = {
    "caption dropout": {"caption_dropout": 0.5},
    "buckets": {"fit": "bucket", "resolution": 32},
    "flips and masks": {"flip": True, "unmasked_weight": 0.0},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three shapes, one with a mask, one repeated; never write to it."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "2_again").mkdir()
    for name, size in (("a", (96, 32)), ("b", (32, 96)), ("2_again/c", (40, 40))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / f"{name}.png")
    mask = Image.new("L", (96, 32))
    mask.paste(255, (30, 0, 60, 32))
    mask.save(folder / "a-masklabel.png")
    return folder


def with_options(recipe: Recipe, photos: Path, staged: dict[str, Any], shown: dict[str, Any]) -> Recipe:
    assert recipe.stage1 and recipe.stage2
    return without(
        recipe,
        data=Data(photos=photos, class_noun="backpack", **shown),
        stage1=recipe.stage1.model_copy(update={"steps": 4, **staged}),
        stage2=recipe.stage2.model_copy(update={"steps": 4, **staged}),
        checkpoints=Checkpoints(every=3),
    )


@pytest.fixture(scope="module")
def plain(tiny_recipe: Recipe, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any of the options."""
    torch.set_num_threads(1)
    recipe = with_options(tiny_recipe, shapes, {}, {})
    return train(recipe, tmp_path_factory.mktemp("runs") / "plain", display=Display())


@pytest.mark.parametrize("name", [*STAGED, *SHOWN])
def test_a_run_with_it_is_another_in_both_stages(
    tiny_recipe: Recipe, shapes: Path, plain: Path, tmp_path: Path, name: str
) -> None:
    recipe = with_options(tiny_recipe, shapes, STAGED.get(name, {}), SHOWN.get(name, {}))
    run = train(recipe, tmp_path / "run", display=Display())
    ours, theirs = results(run), results(plain)
    assert all(np.isfinite(line["loss"]) for line in metrics(run))
    assert not torch.equal(ours["<rare>"], theirs["<rare>"])
    assert not torch.equal(ours["conv_in.weight"], theirs["conv_in.weight"])


def test_all_of_them_go_together_with_a_prior_and_a_text_encoder_and_resume_bit_for_bit(
    tiny_recipe: Recipe, shapes: Path, tmp_path: Path, cache: Path
) -> None:
    """Class images are squares beside photos of any bucket."""
    staged = {name: value for options in STAGED.values() for name, value in options.items()}
    shown = {name: value for options in SHOWN.values() for name, value in options.items()}
    recipe = with_options(tiny_recipe, shapes, staged, shown)
    assert recipe.stage2
    recipe = without(
        recipe,
        prior=Prior(preserve=True, num_class_images=3, num_inference_steps=2, states_per_path=2),
        stage2=recipe.stage2.model_copy(update={"train_text_encoder": True, "gradient_accumulation_steps": 2}),
    )
    unbroken = train(recipe, tmp_path / "unbroken", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", 2), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_bits(run, unbroken)
    assert metrics(run) == metrics(unbroken)
    assert all(np.isfinite(line["loss"]) for line in metrics(run))
    assert generate(run, "a {}", count=1, num_inference_steps=1)


# The average of the weights


def test_samples_and_result_are_of_the_average(tiny_recipe: Recipe, photos: Path, tmp_path: Path) -> None:
    averaged = with_options(tiny_recipe, photos, {"ema_decay": 0.9, "learning_rate": 1e-2}, {})
    run = train(averaged, tmp_path / "run", display=Display())
    sample = np.asarray(Image.open(run / "samples" / "stage2-000004" / "prompt1-1.png"), dtype=int)
    drawn = np.asarray(generate(run, "a photo of a {} on the beach", count=1, num_inference_steps=2)[0], dtype=int)
    assert abs(sample - drawn).max() <= 1
    last = train(with_options(tiny_recipe, photos, {"learning_rate": 1e-2}, {}), tmp_path / "last", display=Display())
    other = np.asarray(generate(last, "a photo of a {} on the beach", count=1, num_inference_steps=2)[0], dtype=int)
    assert abs(drawn - other).max() > 1


def test_an_adapter_can_be_averaged(tiny_recipe: Recipe, photos: Path, tmp_path: Path) -> None:
    recipe = with_options(tiny_recipe, photos, {"ema_decay": 0.5}, {})
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"train": "adapter"})
    runs = [
        train(without(recipe, stage2=options, adapter=Adapter(rank=2)), tmp_path / name, display=Display())
        for name, options in {"averaged": stage2, "last": stage2.model_copy(update={"ema_decay": 0.0})}.items()
    ]
    pictures = [generate(run, "a {}", count=1, num_inference_steps=2)[0].tobytes() for run in runs]
    assert pictures[0] != pictures[1]


# Which photos, and how much of them


def test_the_first_photos_alone_train_as_if_there_were_no_others(
    tiny_recipe: Recipe, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "two").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(photos / name, tmp_path / "two")
    few = with_options(tiny_recipe, photos, {}, {"num_photos": 2})
    own = with_options(tiny_recipe, tmp_path / "two", {}, {})
    runs = [train(recipe, tmp_path / name, display=Display()) for name, recipe in {"few": few, "own": own}.items()]
    assert_same_bits(*runs)


def test_a_white_mask_is_no_mask(tiny_recipe: Recipe, photos: Path, tmp_path: Path) -> None:
    masked = Path(shutil.copytree(photos, tmp_path / "masked"))
    Image.new("L", (40, 32), 255).save(masked / "0-masklabel.png")
    one, other = (
        train(with_options(tiny_recipe, folder, {}, {}), tmp_path / name, display=Display())
        for name, folder in {"one": photos, "other": masked}.items()
    )
    assert_same_bits(one, other)


def test_resuming_with_another_mask_or_repeat_is_refused(tiny_recipe: Recipe, shapes: Path, tmp_path: Path) -> None:
    for number, change in enumerate(("mask", "repeats")):
        folder = Path(shutil.copytree(shapes, tmp_path / f"photos{number}"))
        recipe = with_options(tiny_recipe, folder, {}, {})
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / f"run{number}", display=Watcher(("stage 1", 2), ctrl_c))
        if change == "mask":
            Image.new("L", (96, 32), 255).save(folder / "a-masklabel.png")
        else:
            (folder / "2_again").rename(folder / "3_again")
        with pytest.raises(UserError, match="photos changed"):
            train(recipe, tmp_path / f"run{number}", resume=True, display=Display())


# Checkpoints at given steps


def test_checkpoints_at_given_steps_stay_with_their_samples(tiny_recipe: Recipe, photos: Path, tmp_path: Path) -> None:
    recipe = without(with_options(tiny_recipe, photos, {}, {}), checkpoints=Checkpoints(every=3, keep=1, at=(1, 2, 4)))
    run = train(recipe, tmp_path / "run", display=Display())
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == [f"stage1-00000{k}" for k in (1, 2, 4)] + [f"stage2-00000{k}" for k in (1, 2, 3)]
    samples = sorted(path.stem for path in (run / "samples").glob("*.png"))
    assert samples == [f"stage{stage}-00000{k}" for stage in (1, 2) for k in (1, 2, 3, 4)]


# Styles, class nouns, Textual Inversion


def test_a_style_needs_no_class_noun(tiny_recipe: Recipe, photos: Path, tmp_path: Path) -> None:
    recipe = without(
        with_options(tiny_recipe, photos, {}, {}),
        data=Data(photos=photos, learnable="style"),
        sample=Sample(prompts=("a house in the style of {}",), per_prompt=1, num_inference_steps=1),
    )
    run = train(recipe, tmp_path / "run", display=Display())
    braces, spelled = generate(
        run, ["a house in the style of {}", "a house in the style of <rare>"], count=1, num_inference_steps=1
    )
    assert braces.tobytes() == spelled.tobytes()


@pytest.mark.parametrize(("learnable", "vectors"), [("object", 3), ("style", 1)])
def test_textual_inversion_learns_a_noun_of_one_or_several_vectors(
    tiny_base: Path, photos: Path, tmp_path: Path, learnable: str, vectors: int
) -> None:
    overrides = {
        "data.photos": str(photos),
        "data.learnable": learnable,
        "token.num_vectors": vectors,
        "token.initializer": "red",
        "stage1.steps": 3,
        "sample.num_inference_steps": 1,
    }
    recipe = load_recipe("textual-inversion", base=str(tiny_base), overrides=overrides)
    run = train(recipe, tmp_path / "run", display=Display())
    name, keyed = load_embedding(run / "embedding" / "rare.safetensors")
    assert name == "<rare>"
    rows = keyed[""]
    assert len(rows) == vectors
    assert len({tuple(row.tolist()) for row in rows}) == vectors
    assert not (run / "unet").exists()
    assert generate(run, "{} on a beach", count=1, num_inference_steps=1)
