"""Pretrain every pocket model from nothing: `python -m twostage.pretraining FOLDER`.

Seeded and resumable: what is drawn or trained stays in FOLDER, and a second call goes on from there. The finished
models land in FOLDER/weights, in the layout that `twostage/pocket/weights` ships.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, ViTImageProcessor

from . import objectives
from .dataset import DRAWS_PER_SUBJECT, Dataset, load_dataset, said_by_captions
from .fit import Schedule, fit
from .measure import measure, write_card
from .nets import (
    TEXT_WIDTH,
    build_clip,
    build_judge,
    build_noise_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
    build_vit,
)
from .tokenizer import build_tokenizer

TRAIN, HELD_OUT = 1, 2
HELD_OUT_PICTURES = 3000
CAPTION_VARIANTS = 3
TEXT_PICTURES = 12_000
RARE_WORD_SHARE = 0.05
EMPTY_PROMPT_SHARE = 0.1
MODELS = ("vae", "text", "denoiser", "judge", "vit", "clip")


@dataclass(frozen=True)
class Plan:
    """How much of everything; the defaults are what the shipped weights were trained with."""

    pictures: int = 60_000
    vae: Schedule = Schedule(steps=7000, learning_rate=3e-3, weight_decay=0.0)
    vae_batch: int = 16
    text: Schedule = Schedule(steps=600, learning_rate=1e-3)
    denoiser: Schedule = Schedule(steps=5700, learning_rate=1e-3, warmup=200, ema=0.999)
    denoiser_batch: int = 64
    judge: Schedule = Schedule(steps=3000, learning_rate=2e-3)
    vit: Schedule = Schedule(steps=320, learning_rate=1e-3)
    clip: Schedule = Schedule(steps=900, learning_rate=1e-3)
    contrastive_batch: int = 128


@dataclass(frozen=True)
class Bench:
    """Where the work happens: data, folders, device."""

    data: Dataset
    folder: Path
    plan: Plan
    device: torch.device

    def pixels(self, indices: np.ndarray) -> Tensor:
        pixels = self.data.pixels(indices).to(self.device)
        return pixels.contiguous(memory_format=torch.channels_last)

    def fit(self, name: str, net: nn.Module, loss: Any, schedule: Schedule, **options: Any) -> Any:
        net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return fit(name, net, loss, schedule, self.folder, **options)

    def rows(self, step: int, count: int, span: int | None = None) -> np.ndarray:
        """Which pictures step `step` sees."""
        return np.random.default_rng([step, count]).integers(0, span or len(self.data), count)


def train_vae(bench: Bench) -> AutoencoderKL:
    """The autoencoder: on 32x32 crops first, four times as fast, then on whole pictures."""
    torch.manual_seed(0)
    vae, plan = build_vae(), bench.plan

    def loss(step: int, generator: torch.Generator) -> Tensor:
        pixels = bench.pixels(bench.rows(step, plan.vae_batch))
        if step < 0.7 * plan.vae.steps:
            top, left = (4 * torch.randint(0, 9, (2,), generator=generator)).tolist()
            pixels = pixels[..., top : top + 32, left : left + 32].contiguous(memory_format=torch.channels_last)
        shape = (len(pixels), vae.config.latent_channels, pixels.shape[2] // 4, pixels.shape[3] // 4)
        return objectives.vae_loss(vae, pixels, torch.randn(shape, generator=generator).to(bench.device))

    return bench.fit("vae", vae, loss, plan.vae)


@torch.no_grad()
def encode_pictures(bench: Bench, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of every picture, (N, C, 16, 16) float16, kept in the folder."""
    path = bench.folder / "latents.pt"
    if not path.exists():
        parts = []
        for start in range(0, len(bench.data), 100):
            posterior = vae.encode(bench.pixels(np.arange(start, min(start + 100, len(bench.data))))).latent_dist
            parts.append((posterior.mean.half().cpu(), posterior.std.half().cpu()))
        mean, std = (torch.cat(part).contiguous() for part in zip(*parts, strict=True))
        torch.save((mean, std), path)
    mean, std = torch.load(path, weights_only=True)
    return mean, std


def tokenize_captions(bench: Bench, tokenizer: CLIPTokenizer) -> Tensor:
    """Three captions a picture, (N, 3, 77); now and then with a random word before the class, which means nothing.

    Captions of the real world are full of such words. Without them a rare token would be so strange to the model
    that the rest of the prompt is lost.
    """
    path = bench.folder / "captions.pt"
    if not path.exists():
        words = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
        rng = np.random.default_rng(0)
        rows = []
        for index in range(len(bench.data)):
            for variant in range(CAPTION_VARIANTS):
                text = bench.data.caption(index, variant)
                name = bench.data.class_name(index)
                if rng.random() < RARE_WORD_SHARE:
                    text = text.replace(name, f"{rng.choice(words)} {name}")
                rows.append(text)
        ids = tokenizer(rows, padding="max_length", truncation=True, return_tensors="pt").input_ids
        torch.save(ids.view(len(bench.data), CAPTION_VARIANTS, -1).to(torch.int16), path)
    captions: Tensor = torch.load(path, weights_only=True)
    return captions


def train_text_encoder(bench: Bench, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, before the U-Net and without it: every state from the end of a caption on says what it said.

    Trained together with the U-Net, it spent itself on the contexts, which fill the pictures, and classes and colours
    never came through.
    """
    captions = tokenize_captions(bench, tokenizer)
    said = torch.from_numpy(said_by_captions(bench.data, TEXT_PICTURES, CAPTION_VARIANTS))
    torch.manual_seed(5)
    text_encoder = build_text_encoder(tokenizer)
    net = nn.ModuleDict({"text_encoder": text_encoder, "head": nn.Linear(TEXT_WIDTH, said.shape[-1])})
    table = text_encoder.get_input_embeddings().weight

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.from_numpy(bench.rows(step, 64, TEXT_PICTURES))
        variant = torch.randint(0, CAPTION_VARIANTS, (len(rows),), generator=generator)
        input_ids = captions[rows, variant].long().to(bench.device)
        states = text_encoder(input_ids).last_hidden_state
        ended = input_ids == tokenizer.eos_token_id
        return objectives.reading_loss(net["head"](states), said[rows, variant].to(bench.device), ended)

    bench.fit("text", net, loss, bench.plan.text, after_step=lambda: objectives.hold_embedding_norms(table))
    return text_encoder


def train_denoiser(
    bench: Bench,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    begun: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:
    """The U-Net, by v-prediction on cached latents; text encoder and VAE are frozen. `begun` is one to go on from."""
    mean, std = encode_pictures(bench, vae)
    captions = tokenize_captions(bench, tokenizer)
    scale = 1 / mean[:5000].float().std().item()
    vae.register_to_config(scaling_factor=scale)
    torch.manual_seed(1)
    unet, noise_scheduler, plan = begun or build_unet(), build_noise_scheduler(), bench.plan
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.from_numpy(bench.rows(step, plan.denoiser_batch))
        noise, sample = torch.randn((2, len(rows), *mean.shape[1:]), generator=generator)
        latents = (mean[rows].float() + std[rows].float() * sample) * scale
        timesteps = objectives.draw_timesteps(len(rows), generator)
        variant = torch.randint(0, CAPTION_VARIANTS, (len(rows),), generator=generator)
        dropped = torch.rand(len(rows), generator=generator) < EMPTY_PROMPT_SHARE
        input_ids = torch.where(dropped[:, None], empty, captions[rows, variant].long()).to(bench.device)
        noisy = noise_scheduler.add_noise(latents, noise, timesteps).to(bench.device)
        target = noise_scheduler.get_velocity(latents, noise, timesteps).to(bench.device)
        with torch.no_grad():
            states = text_encoder(input_ids).last_hidden_state
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(bench.device.type, torch.bfloat16):
            prediction = unet(noisy, timesteps.to(bench.device), states).sample
        return objectives.multiscale_loss(prediction.float(), target)

    processors = unet.attn_processors
    if bench.device.type == "cpu":
        # In bfloat16 on a CPU, the backward pass of the fused attention takes as long as all convolutions.
        unet.set_attn_processor(AttnProcessor())
    bench.fit("denoiser", unet, loss, plan.denoiser)
    unet.set_attn_processor(processors)
    return unet


def train_judge(bench: Bench) -> nn.Module:
    """The classifier that judges what generated pictures show."""
    torch.manual_seed(2)
    judge, labels = build_judge(), torch.from_numpy(bench.data.labels)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = bench.rows(step, 64)
        pixels = objectives.blurred_and_noisy(bench.pixels(rows), generator)
        return objectives.judge_loss(judge, pixels, labels[rows].to(bench.device))

    judged: nn.Module = bench.fit("judge", judge, loss, bench.plan.judge)
    return judged


def train_vit(bench: Bench) -> nn.Module:
    """DINO's stand-in: learns, without labels, that two plain photos of one subject are the same thing."""
    torch.manual_seed(3)
    vit = build_vit()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng([step, 4])
        subjects = DRAWS_PER_SUBJECT * rng.permutation(len(bench.data) // DRAWS_PER_SUBJECT)
        subjects = subjects[: bench.plan.contrastive_batch]
        first, second = (objectives.blurred_and_noisy(bench.pixels(subjects + which), generator) for which in (0, 1))
        return objectives.vit_loss(vit, first, second)

    trained: nn.Module = bench.fit("vit", vit, loss, bench.plan.vit)
    return trained


def train_clip(bench: Bench, tokenizer: CLIPTokenizer) -> nn.Module:
    """CLIP's stand-in, apart from the generator's text encoder."""
    captions = tokenize_captions(bench, tokenizer)
    torch.manual_seed(4)
    clip = build_clip(tokenizer)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = bench.rows(step, bench.plan.contrastive_batch)
        variant = torch.randint(0, CAPTION_VARIANTS, (len(rows),), generator=generator)
        return objectives.clip_loss(clip, bench.pixels(rows), captions[rows, variant].long().to(bench.device))

    trained: nn.Module = bench.fit("clip", clip, loss, bench.plan.clip)
    return trained


def image_processor() -> ViTImageProcessor:
    """Pixels to [-1, 1] at 64x64, as every pocket model sees them."""
    return ViTImageProcessor(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=True, resample=3
    )


def save_models(folder: Path, models: dict[str, Any], tokenizer: CLIPTokenizer) -> None:
    """Write the models as float16 safetensors, in the layout stock diffusers and transformers load."""
    if "denoiser" in models:
        StableDiffusionPipeline(
            vae=models["vae"],
            text_encoder=models["text"],
            tokenizer=tokenizer,
            unet=models["denoiser"],
            scheduler=build_noise_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(torch.float16).save_pretrained(folder / "pipeline")
    for name in ("judge", "vit", "clip"):
        if name in models:
            models[name].half().save_pretrained(folder / name)
            image_processor().save_pretrained(folder / name)
    if "clip" in models:
        tokenizer.save_pretrained(folder / "clip")
    for config in folder.rglob("config.json"):
        settings = json.loads(config.read_text(encoding="utf-8"))
        if "dtype" in settings:
            # On disk half precision saves space; transformers would compute in it too, diffusers in float32.
            config.write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the models named, all by default; those already finished in the folder are only loaded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw pictures")
    parser.add_argument("--begun", type=Path, help="weights folder whose U-Net, VAE and text encoder to go on with")
    parser.add_argument("--denoiser-steps", type=int, default=Plan.denoiser.steps)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    plan = replace(Plan(), denoiser=replace(Plan.denoiser, steps=arguments.denoiser_steps))
    data = load_dataset(TRAIN, plan.pictures, arguments.folder / "world", arguments.workers)
    bench = Bench(data, arguments.folder, plan, torch.device(arguments.device))
    tokenizer = build_tokenizer()
    models: dict[str, Any] = {}
    begun = None
    if arguments.begun:
        pipeline = StableDiffusionPipeline.from_pretrained(arguments.begun / "pipeline", torch_dtype=torch.float32)
        models["vae"], models["text"], begun = pipeline.vae, pipeline.text_encoder, pipeline.unet
    if "vae" not in models and {"vae", "denoiser"} & set(arguments.models):
        models["vae"] = train_vae(bench)
    if "text" not in models and {"text", "denoiser"} & set(arguments.models):
        models["text"] = train_text_encoder(bench, tokenizer)
    if "denoiser" in arguments.models:
        for name in ("vae", "text"):
            models[name].to(bench.device).eval()
        models["denoiser"] = train_denoiser(bench, models["vae"], models["text"], tokenizer, begun)
    if "judge" in arguments.models:
        models["judge"] = train_judge(bench)
    if "vit" in arguments.models:
        models["vit"] = train_vit(bench)
    if "clip" in arguments.models:
        models["clip"] = train_clip(bench, tokenizer)
    weights = arguments.folder / "weights"
    save_models(weights, models, tokenizer)
    if all((weights / name).exists() for name in ("pipeline", "judge", "vit", "clip")):
        held_out = load_dataset(HELD_OUT, HELD_OUT_PICTURES, arguments.folder / "world", arguments.workers)
        write_card(weights, measure(weights, held_out, arguments.device), recipe_of(plan))


def recipe_of(plan: Plan) -> str:
    """How the models were trained, in a sentence each, for the card."""
    return (
        f"Trained by `python -m twostage.pretraining FOLDER` on {plan.pictures} pictures: "
        f"VAE {plan.vae.steps} steps of {plan.vae_batch}, text encoder {plan.text.steps} of 64, "
        f"U-Net {plan.denoiser.steps} of {plan.denoiser_batch}, judge {plan.judge.steps} of 64, "
        f"ViT {plan.vit.steps} and CLIP {plan.clip.steps} of {plan.contrastive_batch}; AdamW, "
        "float32, the U-Net's steps in bfloat16."
    )


if __name__ == "__main__":
    main()
