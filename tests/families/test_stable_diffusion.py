"""Stable Diffusion 1.x and 2.x; what both share is held in `test_base`, so here it is what the second adds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from safetensors.torch import load_file

from benchmarks import random_sd15
from benchmarks.random_bases import stable_diffusion_2
from tests.watching import without
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import open_pipeline
from twostage.families import load_base
from twostage.memory.attention import set_attention
from twostage.method.class_samples import Making
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.examples import encode_photos
from twostage.method.prior import Preserving, prepare_prior
from twostage.recipe import Data, Prior, Recipe, Sample, Stage1, Stage2, Token
from twostage.recipe_evaluation import Foreign
from twostage.run import train
from twostage.subject.photos import find_photos
from twostage.subject.token_files import save_embedding

BASES = {
    "sd15": lambda folder: random_sd15.write_pipeline(folder, random_sd15.SIZES["tiny"]),
    "sd2": lambda folder: stable_diffusion_2.write_pipeline(folder, stable_diffusion_2.SIZES["tiny"]),
    "sd2-base": lambda folder: stable_diffusion_2.write_pipeline(folder, stable_diffusion_2.SIZES["tiny-base"]),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that predicts the velocity; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "sd2"
    BASES["sd2"](folder)
    return folder


@pytest.fixture(scope="module")
def recipe(sd2: Path, photos: Path) -> Recipe:
    return Recipe(
        name="sd2",
        base=str(sd2),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red"),
        stage1=Stage1(steps=2, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=2, learning_rate=1e-3, batch_size=2),
        sample=Sample(per_prompt=0),
    )


def test_states_of_prompts_are_those_of_stock_diffusers(sd2: Path) -> None:
    """OpenCLIP's tokenizer fills prompts up with '!', not with the end."""
    base, stock = load_base(str(sd2)), StableDiffusionPipeline.from_pretrained(sd2)
    assert stock.tokenizer.pad_token == "!"
    states, negative = stock.encode_prompt(["a red backpack", "snow"], CPU, 1, True)
    assert torch.equal(base.encode_text(["a red backpack", "snow"])["states"], states)
    assert torch.equal(base.encode_text(["", ""])["states"], negative)


@pytest.mark.parametrize("kind", ["sd2", "sd2-base"])
def test_the_loss_is_of_what_the_base_predicts(tmp_path: Path, photos: Path, kind: str) -> None:
    """The velocity (arXiv 2202.00512) at 768 pixels, the noise at 512: written out with stock pieces."""
    BASES[kind](tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    examples = encode_photos(base, find_photos(photos), Data(), "red backpack", 0, CPU)
    batch = examples.batch(2, 3, range(2), 2)
    prompts = list(dict.fromkeys(batch.prompts))
    with torch.no_grad():
        loss = DenoiserLearner(base, EncodedText(encode_prompts(base, prompts, str, CPU)))(batch)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    states = stock.encode_prompt(batch.prompts, CPU, 1, False)[0]
    with torch.no_grad():
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        output = stock.unet(noisy, batch.timesteps, states).sample
    target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps) if kind == "sd2" else batch.noise
    torch.testing.assert_close(loss, (output - target).pow(2).mean((1, 2, 3)), atol=1e-6, rtol=1e-5)


def test_attention_that_overflows_float16_does_not_where_it_is_trained(sd2: Path) -> None:
    """Scores of Stable Diffusion 2.1 reach beyond float16, so its configuration has diffusers write them out in
    float32. Neither of our ways writes them out: the kernels add them up in float32. The judge is diffusers' own way,
    in float32 and in float16."""
    unet = load_base(str(sd2)).denoiser
    assert unet.config.upcast_attention
    for module in unet.modules():
        if isinstance(module, Attention):
            for projection in (module.to_q, module.to_k):
                projection.weight.data *= 300
    noisy, states = torch.randn(1, 4, 8, 8).half(), torch.randn(1, 77, 16).half()

    def predicted(net: UNet2DConditionModel) -> torch.Tensor:
        output: torch.Tensor = net(noisy.to(net.dtype), torch.tensor([500]), states.to(net.dtype)).sample
        return output

    with torch.no_grad():
        unet.set_attn_processor(AttnProcessor())
        right = predicted(unet)
        half = unet.half()
        upcast = predicted(half)
        for module in half.modules():
            if isinstance(module, Attention):
                module.upcast_attention = False
        assert not predicted(half).isfinite().all()
    set_attention(half, "sdpa")
    ours = predicted(half.requires_grad_(True))
    torch.testing.assert_close(ours.float(), right, atol=0.02, rtol=0.02)
    torch.testing.assert_close(ours, upcast, atol=0.02, rtol=0.02)
    ours.float().square().mean().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in half.parameters())


@pytest.mark.parametrize("source", ["predictions", "photos", "images"])
def test_priors_and_guidance_work_with_velocities(recipe: Recipe, tmp_path: Path, source: Any) -> None:
    prior = Prior(preserve=True, source=source, num_class_images=2, num_inference_steps=4, states_per_path=1)
    sample = Sample(
        prompts=("a photo of a {}",), per_prompt=1, num_inference_steps=4, class_guidance=0.5, away_from="base"
    )
    run = train(without(recipe, prior=prior, sample=sample), tmp_path / "run", display=Display())
    weights = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert list((run / "samples").rglob("*.png"))


def test_the_base_itself_has_nothing_to_learn_of_its_velocities(sd2: Path, photos: Path) -> None:
    base = load_base(str(sd2))
    options = Prior(source="predictions", num_class_images=2, num_inference_steps=4, states_per_path=2)
    making = Making(options, "a photo of a backpack", base, Data(), 0, Accelerator(), Display())
    samples = prepare_prior(making, [])
    examples = encode_photos(base, find_photos(photos), Data(), "red backpack", 0, CPU)
    batch = Preserving(examples, samples).batch(2, 3, range(2), 2)
    states = encode_prompts(base, [*dict.fromkeys(batch.prompts), *samples.prompts], str, CPU)
    learner = DenoiserLearner(base, EncodedText(states))
    with torch.no_grad():
        held = learner(batch) - learner(replace(batch, prior=None))
    assert held.abs().max() < 1e-4  # But for float16, in which they are kept.


def test_the_text_encoder_is_trained_to_its_last_layer(recipe: Recipe, sd2: Path, tmp_path: Path) -> None:
    """The published one's last layer has been left out of its files: what is there is read."""
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"train_text_encoder": True})
    run = train(without(recipe, stage2=stage2), tmp_path / "run", display=Display())
    ours, start = (load_file(path / "text_encoder" / "model.safetensors") for path in (run, sd2))
    same = [name for name, value in start.items() if torch.equal(ours[name], value)]
    assert len(same) == 1 and same[0].endswith("token_embedding.weight")


def test_a_token_of_another_width_is_refused(sd2: Path, tmp_path: Path) -> None:
    """One of Stable Diffusion 1 on 2."""
    save_embedding(tmp_path / "rare.safetensors", "<rare>", torch.zeros(1, 12))
    with pytest.raises(UserError, match="is 12 wide, and the text encoder of .* 16"):
        open_pipeline(Foreign(pipeline=str(sd2), embedding=tmp_path / "rare.safetensors", class_noun="bag"))
