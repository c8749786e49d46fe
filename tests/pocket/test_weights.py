"""The bundled models: stock classes load them, and they know the world they were trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from twostage.evaluation.embedders import CLIPEmbedder, ViTEmbedder
from twostage.evaluation.judge import Judge
from twostage.pocket import pocket_folder, world
from twostage.pretraining.measure import prompt_following


@pytest.fixture(scope="module")
def shown() -> list[tuple[world.Subject, world.Scene, Image.Image]]:
    """Ordinary photos of 24 subjects, two of each."""
    photos = []
    for index in range(24):
        subject = world.sample_subject(np.random.default_rng([99, index]), world.CLASSES[index % 12])
        for draw in range(2):
            scene = world.sample_scene(
                np.random.default_rng([98, index, draw]), subject.class_name in world.LIVE, plain=True
            )
            photos.append((subject, scene, world.draw(subject, scene)))
    return photos


def test_all_weights_are_float16_safetensors_and_together_at_most_40_mb() -> None:
    files = [path for path in pocket_folder("pipeline").parent.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
            assert kinds <= {"F16", "I64"}, path
    assert 0 < sum(path.stat().st_size for path in files) <= 40e6


def test_stock_classes_load_every_model() -> None:
    for name, stock in (("clip", CLIPModel), ("vit", ViTModel)):
        assert stock.from_pretrained(pocket_folder(name)).config.architectures == [stock.__name__]
    assert CLIPTokenizer.from_pretrained(pocket_folder("clip")).model_max_length == 77


def test_the_vae_keeps_27_db(shown: list[tuple[world.Subject, world.Scene, Image.Image]]) -> None:
    vae = AutoencoderKL.from_pretrained(pocket_folder("pipeline") / "vae", torch_dtype=torch.float32)
    pixels = torch.stack([torch.from_numpy(np.array(image)) for _, _, image in shown]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    assert 10 * np.log10(4 / (decoded - pixels).square().mean().item()) >= 27


def test_the_judge_reads_renders(shown: list[tuple[world.Subject, world.Scene, Image.Image]]) -> None:
    read = Judge(pocket_folder("judge")).read([image for _, _, image in shown])
    for group, truth in (
        ("class", [subject.class_name for subject, _, _ in shown]),
        ("colour", [subject.colour for subject, _, _ in shown]),
        ("context", [scene.context or "plain" for _, scene, _ in shown]),
    ):
        assert np.mean([a == b for a, b in zip(read[group], truth, strict=True)]) >= 0.95, group


def test_the_vit_tells_subjects_of_a_class_apart(
    shown: list[tuple[world.Subject, world.Scene, Image.Image]],
) -> None:
    embedded = ViTEmbedder(pocket_folder("vit")).images([image for _, _, image in shown])
    first, second = embedded[::2], embedded[1::2]
    # Subjects i and i + 12 share their class.
    same, other = (first * second).sum(1), (first * second.roll(12, 0)).sum(1)
    assert (same > other).float().mean() >= 0.95


def test_the_clip_finds_the_caption(shown: list[tuple[world.Subject, world.Scene, Image.Image]]) -> None:
    clip = CLIPEmbedder(pocket_folder("clip"))
    texts = [world.prompt(s.class_name, colour=s.colour, context=scene.context) for s, scene, _ in shown]
    nearest = (clip.images([image for _, _, image in shown]) @ clip.texts(texts).T).argmax(1)
    assert np.mean([texts[int(i)] == text for i, text in zip(nearest, texts, strict=True)]) >= 0.8


def test_the_pipeline_draws_what_the_prompt_says() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pocket_folder("pipeline"))
    pipeline.set_progress_bar_config(disable=True)
    figures = prompt_following(pipeline, Judge(pocket_folder("judge")), samples=50)
    # By 50 samples; the card says what 1000 come to.
    for figure, least in zip(figures, (0.9, 0.95, 0.9), strict=True):
        assert figure.value >= least, figure.row()


def test_the_card_states_every_figure() -> None:
    card = (pocket_folder("pipeline").parent / "README.md").read_text(encoding="utf-8")
    for figure in ("PSNR", "AUC", "top-1", "prompt following: class", "prompt following: colour", "seconds to load"):
        assert figure in card


def test_pocket_folder_is_inside_the_package() -> None:
    import twostage

    assert Path(twostage.__file__).parent in pocket_folder().parents
