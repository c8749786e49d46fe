"""The figures of the pocket models on held-out draws, and the model card that states them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from twostage.evaluation.embedders import CLIPEmbedder, ViTEmbedder
from twostage.evaluation.judge import Judge
from twostage.pocket.world import CLASSES, COLOURS, CONTEXTS, prompt

from .dataset import DRAWS_PER_SUBJECT, LABELS, Dataset, drawn

SAMPLES = 1000
GUIDANCE = 5.0
STEPS = 25


@dataclass(frozen=True)
class Figure:
    """One line of the card: what was measured, what it came to, what it should reach."""

    name: str
    value: float
    target: str
    met: bool

    def row(self) -> str:
        return f"| {self.name} | {self.value:.4g} | {self.target} | {'yes' if self.met else 'no'} |"


def at_least(name: str, value: float, target: float) -> Figure:
    return Figure(name, value, f">= {target:g}", value >= target)


def below(name: str, value: float, target: float) -> Figure:
    return Figure(name, value, f"< {target:g}", value < target)


def _images(data: Dataset, indices: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(data.pictures[i]) for i in indices]


@torch.inference_mode()
def vae_psnr(pipeline: StableDiffusionPipeline, held_out: Dataset) -> Figure:
    """PSNR in dB of 1000 reconstructions from the posterior mean, over all their pixels together."""
    error = []
    for start in range(0, 1000, 100):
        pixels = held_out.pixels(np.arange(start, start + 100)).to(pipeline.device)
        decoded = pipeline.vae.decode(pipeline.vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        error.append((decoded - pixels).square().mean().item())
    return at_least("VAE: PSNR of held-out pictures, dB", float(10 * np.log10(4 / np.mean(error))), 27)


def judge_accuracy(judge: Judge, held_out: Dataset) -> list[Figure]:
    """Share of held-out renders the judge reads right; sketches have no colour and count for none."""
    seen = judge.read(_images(held_out, np.arange(len(held_out))))
    figures = []
    for column, group in enumerate(("class", "colour", "context")):
        truth = held_out.labels[:, column]
        right = [seen[group][i] == LABELS[group][t] for i, t in enumerate(truth) if t >= 0]
        figures.append(at_least(f"judge: {group} of held-out renders", float(np.mean(right)), 0.99))
    return figures


def prompt_following(pipeline: StableDiffusionPipeline, judge: Judge, samples: int = SAMPLES) -> list[Figure]:
    """Share of `samples` pictures, each of a random class, colour and context, that the judge reads as asked."""
    rng = np.random.default_rng(7)
    asked = {"class": CLASSES, "colour": tuple(COLOURS), "context": CONTEXTS}
    wanted = {group: [names[i] for i in rng.integers(len(names), size=samples)] for group, names in asked.items()}
    images: list[Image.Image] = []
    for start in range(0, samples, 50):
        rows = range(start, min(start + 50, samples))
        prompts = [prompt(wanted["class"][i], colour=wanted["colour"][i], context=wanted["context"][i]) for i in rows]
        generators = [torch.Generator().manual_seed(i) for i in rows]
        images += pipeline(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators).images
    seen = judge.read(images)
    targets = {"class": 0.95, "context": 0.95, "colour": 0.85}
    return [
        at_least(
            f"prompt following: {group} of {samples} samples",
            float(np.mean([a == b for a, b in zip(seen[group], wanted[group], strict=True)])),
            target,
        )
        for group, target in targets.items()
    ]


def subject_auc(vit: ViTEmbedder, held_out: Dataset) -> Figure:
    """Chance that two photos of one subject are closer than photos of two subjects of a class."""
    firsts = np.arange(0, len(held_out), DRAWS_PER_SUBJECT)
    first, second = (vit.images(_images(held_out, firsts + which)) for which in (0, 1))
    cosines = (first @ second.T).numpy()
    classes = held_out.labels[firsts, 0]
    same = np.diag(cosines)
    other = cosines[(classes[:, None] == classes[None]) & ~np.eye(len(firsts), dtype=bool)]
    auc = np.mean([(other < score).mean() + 0.5 * (other == score).mean() for score in same])
    return at_least("ViT: same subject against another of its class, AUC", float(auc), 0.98)


def caption_top1(clip: CLIPEmbedder, held_out: Dataset) -> Figure:
    """Share of photos whose own full caption is nearest among 100 different ones."""
    right = []
    for block in range(5):
        rng, captions, images = np.random.default_rng(block), [], []
        for index in range(block * 400, len(held_out)):
            subject, scene = drawn(held_out.seed, index)
            colour = None if scene.style == "sketch" else scene.colour or subject.colour
            text = prompt(
                subject.class_name,
                colour=colour,
                property=scene.property,
                accessory=scene.accessory,
                context=scene.context,
                style=scene.style,
            )
            if text not in captions and rng.random() < 0.5:
                captions.append(text)
                images.append(Image.fromarray(held_out.pictures[index]))
            if len(captions) == 100:
                break
        nearest = (clip.images(images) @ clip.texts(captions).T).argmax(dim=1)
        right.append((nearest == torch.arange(100)).float().mean().item())
    return at_least("CLIP: right caption among 100, top-1", float(np.mean(right)), 0.90)


def speed(folder: Path) -> list[Figure]:
    """Seconds to load the pipeline, and to draw four pictures of 25 steps, on this machine."""
    began = time.perf_counter()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    loaded = time.perf_counter()
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a photo of a dog on the beach", num_images_per_prompt=4, num_inference_steps=25, guidance_scale=GUIDANCE)
    drawn_at = time.perf_counter()
    return [
        below("seconds to load the pipeline", loaded - began, 2),
        below("seconds for four pictures of 25 steps", drawn_at - loaded, 6),
    ]


def measure(weights: Path, held_out: Dataset, device: str = "cpu") -> list[Figure]:
    """All figures of the models in `weights`; prints each as it comes."""
    pipeline = StableDiffusionPipeline.from_pretrained(weights / "pipeline", torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    judge = Judge(weights / "judge", device)
    figures = []
    for measured in (
        lambda: speed(weights / "pipeline"),
        lambda: [vae_psnr(pipeline, held_out)],
        lambda: judge_accuracy(judge, held_out),
        lambda: [subject_auc(ViTEmbedder(weights / "vit", device), held_out)],
        lambda: [caption_top1(CLIPEmbedder(weights / "clip", device), held_out)],
        lambda: prompt_following(pipeline, judge),
    ):
        for figure in measured():
            print(figure.row(), flush=True)
            figures.append(figure)
    return figures


def write_card(weights: Path, figures: list[Figure], how: str) -> None:
    """Write weights/README.md: what the models are, how they were trained, what they reach."""
    rows = "\n".join(figure.row() for figure in figures)
    size = sum(path.stat().st_size for path in weights.rglob("*.safetensors")) / 1e6
    (weights / "README.md").write_text(
        f"""# The pocket models

A text-to-image pipeline in Stable Diffusion's shape and three models to judge it by, trained from nothing on the
procedural world of `twostage.pocket.world`: 64x64 pictures of {len(CLASSES)} classes in {len(CONTEXTS)} contexts.
Stock classes, stock folder layouts, float16 safetensors, {size:.1f} MB in all.

| folder | class | job |
|---|---|---|
| pipeline | StableDiffusionPipeline | text to image: v-prediction, 6 latent channels at 16x16 |
| clip | CLIPModel | does a picture fit its prompt |
| vit | ViTModel | is it the same subject (DINO's job); self-supervised on pairs of photos of one subject |
| judge | ResNetForImageClassification | reads class, colour, context and style off a picture |

{how}

Licence: Apache-2.0, as the code; there is no data in it but what the code draws.

| figure | measured | to reach | met |
|---|---|---|---|
{rows}
""",
        encoding="utf-8",
    )
