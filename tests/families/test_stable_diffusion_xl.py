"""Stable Diffusion XL: what its two text encoders and its U-Net are told is what stock diffusers tells them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection

from benchmarks import random_sd15
from benchmarks.random_bases import stable_diffusion_xl
from cli.main import app
from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import open_pipeline
from twostage.families import Base, load_base
from twostage.method.class_samples import Making
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import encode_photos
from twostage.method.prior import find_class_images, prepare_prior
from twostage.method.sampling import assemble
from twostage.prompt_states import PromptStates
from twostage.recipe import Adapter, Checkpoints, Data, Prior, Recipe, Sample, Stage1, Stage2, Token
from twostage.recipe_evaluation import Foreign
from twostage.run import generate, load_pipeline, train
from twostage.subject.photos import find_photos
from twostage.subject.token_files import save_embedding
from twostage.subject.tokens import Placeholders, add_placeholder

BASES = {"sdxl": lambda folder: stable_diffusion_xl.write_pipeline(folder, stable_diffusion_xl.SIZES["tiny"])}
CPU = torch.device("cpu")
SIDE = 32
PROMPT = "a photo of a <rare> backpack"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusionXLPipeline` folder, 32x32 pixels; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "xl"
    BASES["sdxl"](folder)
    return folder


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture(scope="module")
def recipe(folder: Path, photos: Path) -> Recipe:
    """Both stages, text encoders in the second one, and a token of two vectors."""
    return Recipe(
        name="xl",
        base=str(folder),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red", num_vectors=2),
        stage1=Stage1(steps=4, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2, train_text_encoder=True),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=3, keep=2),
    )


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never write to it."""
    torch.set_num_threads(1)
    return train(recipe, tmp_path_factory.mktemp("runs") / "xl", display=Display())


def of_pipeline(run: Path) -> dict[str, torch.Tensor]:
    """All that a run has left."""
    files = (file for file in sorted(run.rglob("*.safetensors")) if "checkpoints" not in file.parts)
    return {f"{file.parent.name} {name}": value for file in files for name, value in load_file(file).items()}


def drawn_by(pipeline: StableDiffusionXLPipeline, prompt: str = PROMPT) -> bytes:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    return pipeline(prompt, generator=generator, num_inference_steps=3, guidance_scale=5.0).images[0].tobytes()


def drawn_from(run: Path) -> bytes:
    how: dict[str, Any] = {"class_guidance": 0.0, "away_from": "own", "guidance_scale": 5.0}
    return generate(run, PROMPT, count=1, seed=5, num_inference_steps=3, display=Display(), **how)[0].tobytes()


# Prompts


def test_states_of_prompts_are_those_of_stock_diffusers(base: Base) -> None:
    prompts = ["a photo of a red backpack", "snow"]
    stock = StableDiffusionXLPipeline.from_pretrained(base.folder)
    states, negative, pooled, negative_pooled = stock.encode_prompt(prompts, device=CPU)
    ours, nothing = base.encode_text(prompts), base.encode_text([""]).repeated(2)
    assert torch.equal(ours["states"], states) and torch.equal(ours["pooled"], pooled)
    assert not negative.any()
    assert torch.equal(nothing["states"], negative) and torch.equal(nothing["pooled"], negative_pooled)


def test_the_empty_prompt_is_encoded_where_the_pipeline_says_so(base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(base.folder, tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    _, negative, _, pooled = stock.encode_prompt("snow", device=CPU)
    nothing = load_base(str(folder)).encode_text([""])
    assert negative.any() and torch.equal(nothing["states"], negative) and torch.equal(nothing["pooled"], pooled)


def test_the_state_of_a_whole_prompt_is_that_of_its_end_whatever_tokens_were_added(base: Base) -> None:
    """The published configuration would have it end at the token: what follows would not be told."""
    assert json.loads((base.folder / "text_encoder_2" / "config.json").read_text())["eos_token_id"] == 2
    for name, encoder in base.text.encoders.items():
        add_placeholder(base.text.tokenizers[name], encoder, Token())
    snow, beach = base.encode_text(["a <rare> in the snow", "a <rare> on the beach"])["pooled"]
    assert not torch.equal(snow, beach)


def test_a_run_says_where_prompts_end(trained: Path) -> None:
    """So stock transformers, which reads the text encoder of the run, pools where training has."""
    own = CLIPTextModelWithProjection.from_pretrained(trained / "text_encoder_2")
    assert own.text_model.eos_token_id == load_base(json_base(trained)).text.tokenizers["text_encoder_2"].eos_token_id


def json_base(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["base"]["name"])


# Pictures


def told(examples: Any, size: tuple[int, int] | None = None) -> set[tuple[int, ...]]:
    """All that samples tell of their photos; those of one size of latents."""
    batches = [examples.batch(2, step, range(2), 2) for step in range(8)]
    if size:
        batches = [batch for batch in batches if tuple(batch.latents.shape[-2:]) == size]
    return {tuple(int(number) for number in row) for batch in batches for row in batch.given["time_ids"]}


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        # As compute_time_ids of diffusers' train_text_to_image_sdxl.py, whose Resize has the shorter side be 32:
        # height and width of the photo, top and left of the cut, height and width of what is left.
        ((40, 32), "crop", (32, 40, 0, 4, 32, 32)),
        ((300, 450), "crop", (450, 300, 8, 0, 32, 32)),
        ((1024, 768), "crop", (768, 1024, 0, 5, 32, 32)),
        ((16, 16), "crop", (16, 16, 0, 0, 32, 32)),
        ((300, 450), "pad", (450, 300, 0, 0, 32, 32)),
        # In a bucket, which is 26 wide and 38 high, nearly nothing is cut.
        ((300, 450), "bucket", (450, 300, 0, 0, 38, 26)),
    ],
)
def test_the_unet_is_told_the_photos_size_its_cut_and_what_is_left(
    base: Base, tmp_path: Path, size: tuple[int, int], fit: Any, expected: tuple[int, ...]
) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "photo.png")
    data = Data(photos=tmp_path, fit=fit, flip=True)
    examples = encode_photos(base, find_photos(tmp_path), data, "red backpack", 0, CPU)
    assert told(examples) == {expected}


def test_a_photo_that_lies_on_its_side_is_told_as_it_is_seen(base: Base, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (450, 300), "teal").save(tmp_path / "photo.jpg", exif=exif)
    examples = encode_photos(base, find_photos(tmp_path), Data(photos=tmp_path), "red backpack", 0, CPU)
    assert told(examples) == {(450, 300, 8, 0, 32, 32)}


def test_each_photo_of_a_batch_is_told_for_itself(base: Base, tmp_path: Path) -> None:
    for name, size in {"a": (40, 32), "b": (32, 48), "c": (64, 48)}.items():
        Image.new("RGB", size, "teal").save(tmp_path / f"{name}.png")
    examples = encode_photos(base, find_photos(tmp_path), Data(photos=tmp_path), "red backpack", 0, CPU)
    assert told(examples) == {(32, 40, 0, 4, 32, 32), (48, 32, 8, 0, 32, 32), (48, 64, 0, 5, 32, 32)}


@pytest.mark.parametrize("source", ["images", "predictions"])
def test_prior_samples_are_told_their_own_sizes(base: Base, tmp_path: Path, source: Any) -> None:
    """The user's as photos are; those of the base's own, which are squares, as stock diffusers tells of squares."""
    Image.new("RGB", (48, 36), "gold").save(tmp_path / "own.png")
    options = Prior(
        source=source,
        num_class_images=2,
        num_inference_steps=2,
        states_per_path=1,
        class_images=tmp_path if source == "images" else None,
    )
    making = Making(options, "a photo of a backpack", base, Data(), 0, Accelerator(), Display())
    samples = prepare_prior(making, find_class_images(options))
    questions = [samples.batch(2, step, range(2), 2).question(base.noise_scheduler) for step in range(2)]
    found = {tuple(int(number) for number in row) for asked in questions for row in asked.given["time_ids"]}
    own = {(36, 48, 0, 5, 32, 32)} if source == "images" else set()
    assert found == {(32, 32, 0, 0, 32, 32)} | own


def test_the_loss_is_stock_diffusers_unets(base: Base, photos: Path) -> None:
    """Written out with stock pieces, on what the samples are."""
    examples = encode_photos(base, find_photos(photos), Data(), "red backpack", 0, CPU)
    batch = examples.batch(2, 3, range(2), 2)
    prompts = list(dict.fromkeys(batch.prompts))
    with torch.no_grad():
        loss = DenoiserLearner(base, EncodedText(encode_prompts(base, prompts, str, CPU)))(batch)
    stock = StableDiffusionXLPipeline.from_pretrained(base.folder)
    states, _, pooled, _ = stock.encode_prompt(batch.prompts, device=CPU, do_classifier_free_guidance=False)
    noisy = base.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    sizes = torch.tensor([[32.0, 40, 0, 4, 32, 32]] * 2)
    added = {"text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        output = stock.unet(noisy, batch.timesteps, states, added_cond_kwargs=added).sample
    torch.testing.assert_close(loss, (output - batch.noise).pow(2).mean((1, 2, 3)), atol=1e-6, rtol=1e-5)
