"""DeepFloyd IF, stage II: what it is shown beside the noisy picture, and that stock diffusers shows it the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import IFSuperResolutionPipeline

from benchmarks.random_bases import deepfloyd_if
from twostage.display import Display
from twostage.errors import UserError
from twostage.families import Base, load_base
from twostage.family_parts import Drawing, Shown
from twostage.method.examples import encode_photos
from twostage.method.sampling import assemble
from twostage.recipe import Data, Prior, Recipe, Sample, Stage2, Token
from twostage.run import train
from twostage.subject.photos import find_photos

BASES = {"if-ii": lambda folder: deepfloyd_if.write_pipeline(folder, deepfloyd_if.SIZES["tiny-ii"])}
CPU = torch.device("cpu")
SIDE, STEPS, GUIDANCE = 32, 3, 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deepfloyd") / "if-ii"
    BASES["if-ii"](path)
    return path


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


def conditions(base: Base, photos: Path, seed: int) -> dict[str, torch.Tensor]:
    examples = encode_photos(base, find_photos(photos), Data(photos=photos), "<rare> backpack", 0, CPU)
    return base.family.picture_conditions(examples.views[0].shown[0], torch.Generator().manual_seed(seed))


def test_it_is_shown_the_photo_made_small_with_noise_of_the_level_that_it_is_told(base: Base, photos: Path) -> None:
    photo = encode_photos(base, find_photos(photos), Data(photos=photos), "a backpack", 0, CPU).views[0].mean[0]
    blurred = torch.nn.functional.avg_pool2d(photo.unsqueeze(0), 4)
    noising = IFSuperResolutionPipeline.from_pretrained(base.folder).image_noising_scheduler.alphas_cumprod
    levels = []
    for seed in range(200):
        given = conditions(base, photos, seed)
        assert given["enlarged"].shape == (3, SIDE, SIDE)
        level = int(given["noise_level"])
        small = torch.nn.functional.avg_pool2d(given["enlarged"].unsqueeze(0), 4)
        left = small - noising[level].sqrt() * blurred
        # What a mean of 16 numbers has left of the noise; and what enlarging makes blurred.
        assert left.std() < (1 - noising[level]).sqrt() / 4 * 1.4 + 0.2
        levels.append(level)
    assert min(levels) < 20 and max(levels) > 980
    assert np.histogram(levels, 4, (0, 1000))[0].min() > 30


def test_what_it_is_shown_depends_on_the_generator_alone(base: Base, photos: Path) -> None:
    one, same, other = (conditions(base, photos, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["enlarged"], other["enlarged"])


def test_the_levels_of_noise_are_the_folders(base: Base, tmp_path: Path, photos: Path) -> None:
    pipeline = IFSuperResolutionPipeline.from_pretrained(base.folder)
    noising = pipeline.image_noising_scheduler
    pipeline.image_noising_scheduler = type(noising).from_config(noising.config, num_train_timesteps=10)
    pipeline.save_pretrained(tmp_path / "base")
    other = load_base(str(tmp_path / "base"))
    assert max(int(conditions(other, photos, seed)["noise_level"]) for seed in range(50)) == 9
    assert other.content_hash != base.content_hash
    assert max(int(conditions(base, photos, seed)["noise_level"]) for seed in range(50)) > 9


def test_the_u_net_is_asked_as_diffusers_script_asks_it_where_it_is_shown_the_noisy_picture_twice(base: Base) -> None:
    """`train_dreambooth.py` of diffusers, with --class_labels_conditioning timesteps."""
    noisy, timesteps = torch.randn(2, 3, SIDE, SIDE), torch.tensor([3, 700])
    states = base.encode_text(["a photo of sks dog", "a photo of a dog"])
    with torch.no_grad():
        ours = base.family.predict(
            base.denoiser, noisy, timesteps, states, {"enlarged": noisy, "noise_level": timesteps}
        )
        theirs = base.denoiser(
            torch.cat([noisy, noisy], dim=1), timesteps, states["states"], class_labels=timesteps
        ).sample.chunk(2, dim=1)[0]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_small_pictures_are_enlarged_as_by_stock_diffusers_alone_and_together(base: Base, guidance: float) -> None:
    stock = IFSuperResolutionPipeline.from_pretrained(base.folder)
    stock.set_progress_bar_config(disable=True)
    pipeline, small = assemble(base), torch.rand(2, 3, 8, 8) * 2 - 1
    states, nothing = base.encode_text(["a photo of a backpack", "snow"]), base.encode_text(["", ""])

    def ours(rows: slice, seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.cat([torch.randn(1, 3, SIDE, SIDE, generator=generator) for generator in generators])
        drawing = Drawing(noise, generators, STEPS, guidance, (SIDE, SIDE), small[rows])
        asked = None if guidance == 1 else nothing.rows(rows)
        with torch.no_grad():
            return base.family.denoise(pipeline, states.rows(rows), asked, drawing)

    together = ours(slice(0, 2), [3, 4])
    for row, seed in enumerate([3, 4]):
        theirs = stock(
            prompt_embeds=states["states"][row : row + 1],
            negative_prompt_embeds=nothing["states"][row : row + 1],
            image=small[row : row + 1],
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type="pt",
        ).images
        assert torch.equal(ours(slice(row, row + 1), [seed]), theirs)
        assert torch.allclose(together[row], theirs[0], atol=1e-4)


def test_a_picture_of_no_multiple_of_what_it_enlarges_is_refused(base: Base) -> None:
    with pytest.raises(UserError, match="^resolution 30: the base's unet needs a multiple of 4"):
        base.check_side(30)


def test_a_prior_of_paths_from_noise_is_refused_with_what_works(folder: Path, photos: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        base=str(folder),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(placeholder="sks"),
        stage2=Stage2(steps=1, learning_rate=1e-4),
        prior=Prior(preserve=True, source="predictions", num_class_images=1),
        sample=Sample(per_prompt=0),
    )
    with pytest.raises(UserError, match="^prior.source = 'predictions' .* choose photos or images$"):
        train(recipe, tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


def test_a_prior_of_the_photos_asks_the_untouched_base_with_the_same_small_picture(
    folder: Path, photos: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        base=str(folder),
        data=Data(photos=photos, class_noun="backpack", fit="bucket", flip=True),
        token=Token(placeholder="sks"),
        stage2=Stage2(steps=2, learning_rate=1e-4, snr_gamma=5.0, noise_offset=0.1, batch_size=2),
        prior=Prior(preserve=True, source="photos", num_class_images=2),
        sample=Sample(per_prompt=0),
    )
    assert (train(recipe, tmp_path / "run", display=Display()) / "unet").is_dir()


def test_a_folder_without_its_levels_of_noise_is_refused(base: Base, tmp_path: Path) -> None:
    own = tmp_path / "base"
    for file in (file for file in base.folder.rglob("*") if file.is_file()):
        if file.parent.name != "image_noising_scheduler":
            (own / file.relative_to(base.folder)).parent.mkdir(parents=True, exist_ok=True)
            (own / file.relative_to(base.folder)).hardlink_to(file)
    with pytest.raises(UserError, match="has no image_noising_scheduler/ in .*get it anew$"):
        load_base(str(own))
    (own / "image_noising_scheduler").mkdir()
    for levels in (-1, 0):
        config = own / "image_noising_scheduler" / "scheduler_config.json"
        config.write_text(f'{{"num_train_timesteps": {levels}}}', encoding="utf-8")
        with pytest.raises(UserError, match="^cannot load .*image_noising_scheduler"):
            load_base(str(own))


def test_shown_pictures_of_any_shape_are_taken(base: Base) -> None:
    shown = Shown(torch.zeros(3, 16, 48), (48, 16), (48, 16))
    assert base.family.picture_conditions(shown, torch.Generator())["enlarged"].shape == (3, 16, 48)
