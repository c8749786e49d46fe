"""Runs whose stage 2 trains the text encoder too: what learns, what stays, and what stock libraries read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from tests.watching import Watcher, ctrl_c, metrics, results, without
from twostage.display import Display
from twostage.recipe import Prior, Recipe, Sample, Stage2, Token
from twostage.run import generate, train

TABLE = "token_embedding.weight"


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    """Both stages, the text encoder in the second one, and a prior."""
    return without(
        tiny_recipe,
        token=Token(initializer="red", num_vectors=2),
        stage2=Stage2(steps=6, learning_rate=1e-3, batch_size=2, train_text_encoder=True),
        prior=Prior(preserve=True, num_class_images=2, num_inference_steps=2, states_per_path=1, source="predictions"),
        sample=Sample(prompts=("a photo of a {}",), per_prompt=1, num_inference_steps=2),
    )


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never write to it."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train(recipe, tmp_path_factory.mktemp("runs") / "trained", display=Display())


def text_encoder(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "text_encoder" / "model.safetensors")


def test_words_keep_their_embeddings_and_the_rest_learns(trained: Path, tiny_base: Path) -> None:
    ours, base = text_encoder(trained), text_encoder(tiny_base)
    assert ours.keys() == base.keys()
    same = {name for name, tensor in base.items() if torch.equal(ours[name], tensor)}
    assert [name for name in same if name.endswith(TABLE)]
    assert all(name.endswith((TABLE, "position_ids")) for name in same)


def test_the_learned_token_stays_as_stage_1_left_it(trained: Path, finished: Path) -> None:
    """Another stage 2 from the same stage 1: the embedding files are equal, bit for bit."""
    assert torch.equal(results(trained)["<rare>"], results(finished)["<rare>"])


def test_stock_libraries_draw_the_same_pictures(trained: Path, tiny_base: Path) -> None:
    ours = generate(trained, "a photo of a {}", count=2, seed=5, num_inference_steps=3, guidance_scale=5.0)
    stock = StableDiffusionPipeline.from_pretrained(
        tiny_base,
        unet=UNet2DConditionModel.from_pretrained(trained / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(trained / "text_encoder"),
    )
    stock.load_textual_inversion(trained / "embedding" / "rare.safetensors", token="<rare>")
    stock.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)]
    prompt = "a photo of a <rare> backpack"
    theirs = stock([prompt] * 2, generator=generators, num_inference_steps=3, guidance_scale=5.0).images
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in theirs]


def test_samples_show_the_text_encoder_in_training(trained: Path) -> None:
    last = np.asarray(Image.open(trained / "samples" / "stage2-000006" / "prompt1-1.png"), dtype=int)
    final = np.asarray(generate(trained, "a photo of a {}", count=1, num_inference_steps=2)[0], dtype=int)
    assert abs(last - final).max() <= 1


@pytest.mark.parametrize("step", [1, 4])
def test_a_stopped_run_resumes_bit_for_bit(recipe: Recipe, trained: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", step), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    for ours, theirs in ((text_encoder(run), text_encoder(trained)), (results(run), results(trained))):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert metrics(run) == metrics(trained)


def brief(recipe: Recipe, **changes: object) -> Recipe:
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"steps": 2, "gradient_checkpointing": False, **changes})
    token = Token(placeholder="sks")
    return without(recipe, stage1=None, stage2=stage2, token=token, prior=Prior(), sample=Sample(per_prompt=0))


def test_it_learns_at_a_rate_of_its_own(recipe: Recipe, tiny_base: Path, tmp_path: Path) -> None:
    run = train(brief(recipe, text_encoder_learning_rate=1e-12), tmp_path / "run", display=Display())
    base = text_encoder(tiny_base)
    assert all(torch.allclose(tensor, base[name], atol=1e-9) for name, tensor in text_encoder(run).items())
    unet = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    start = load_file(tiny_base / "unet" / "diffusion_pytorch_model.safetensors")
    assert max((unet[name] - tensor).abs().max() for name, tensor in start.items()) > 1e-3
    assert [line["lr"] for line in metrics(run)] == [1e-3, 1e-3]


def test_gradient_checkpointing_changes_memory_not_results(recipe: Recipe, tmp_path: Path) -> None:
    runs = [
        train(brief(recipe, gradient_checkpointing=on, adam_epsilon=1e-2), tmp_path / str(on), display=Display())
        for on in (False, True)
    ]
    plain, checkpointed = (text_encoder(run) for run in runs)
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, atol=1e-6, rtol=1e-4)


def test_a_rate_for_what_does_not_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="train_text_encoder"):
        Stage2(steps=1, learning_rate=1e-3, text_encoder_learning_rate=1e-6)
