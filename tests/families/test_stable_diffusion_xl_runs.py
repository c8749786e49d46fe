"""Runs of Stable Diffusion XL: what learns, what stays, what stock diffusers draws of it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.evaluating import evaluate
from twostage.families import load_base
from twostage.recipe import Adapter, Prior, Recipe, Sample, Token
from twostage.recipe_evaluation import Evaluation
from twostage.run import generate, train

SIDE = 32
PROMPT = "a photo of a <rare> backpack"


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


def test_a_run_says_where_prompts_end(xl_run: Path, xl_folder: Path) -> None:
    """So stock transformers, which reads the text encoder of the run, pools where training has."""
    own = CLIPTextModelWithProjection.from_pretrained(xl_run / "text_encoder_2")
    assert own.text_model.eos_token_id == load_base(str(xl_folder)).text.tokenizers["text_encoder_2"].eos_token_id


def test_a_run_keeps_both_rows_in_one_file_and_every_word_as_it_was(xl_run: Path, xl_folder: Path) -> None:
    rows = load_file(xl_run / "embedding" / "rare.safetensors")
    assert {key: tuple(value.shape) for key, value in rows.items()} == {"clip_l": (2, 16), "clip_g": (2, 24)}
    for part, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        ours, start = (load_file(path / part / "model.safetensors") for path in (xl_run, xl_folder))
        (table,) = (name for name in start if name.endswith("token_embedding.weight"))
        assert torch.equal(ours[table], start[table])
        red = load_base(str(xl_folder)).tokenizer("red", add_special_tokens=False).input_ids
        moved = rows[key] - start[table][red].mean(0)
        assert moved.abs().amin(1).max() > 1e-3 and not torch.equal(rows[key][0], rows[key][1])


def test_stage_2_trains_all_that_is_read_of_both_text_encoders(xl_run: Path, xl_folder: Path) -> None:
    """The first one's state is taken before its last layer, which therefore learns nothing."""
    same = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        file = "model.safetensors" if "text" in part else "diffusion_pytorch_model.safetensors"
        ours, start = (load_file(path / part / file) for path in (xl_run, xl_folder))
        same[part] = {name.split("layers.")[-1] for name in start if torch.equal(ours[name], start[name])}
    assert not same["unet"]
    assert {name[0] for name in same["text_encoder"] if name[0].isdigit()} == {"1"}
    others = {part: {name for name in names if not name[0].isdigit()} for part, names in same.items()}
    tables = r"(text_model\.)?(embeddings\.token_embedding\.weight|embeddings\.position_ids|final_layer_norm\.\w+)"
    assert all(re.fullmatch(tables, name) for name in others["text_encoder"])
    assert len(same["text_encoder_2"]) == 1


def test_stock_diffusers_draws_what_a_run_of_text_encoders_draws(xl_run: Path, xl_folder: Path) -> None:
    told: dict[str, Any] = {}
    code = re.search(r"```python\n(.*?)picture = ", (xl_run / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    exec(code[1], told)
    assert drawn_by(told["pipe"]) == drawn_from(xl_run)
    plain = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    assert drawn_by(plain) != drawn_from(xl_run)


def test_a_lora_of_all_three_nets_learns_and_is_drawn(xl_recipe: Recipe, tmp_path: Path) -> None:
    assert xl_recipe.stage2
    stage2 = xl_recipe.stage2.model_copy(update={"train": "adapter", "learning_rate": 1e-1})
    run = train(without(xl_recipe, stage2=stage2, adapter=Adapter(rank=2)), tmp_path / "run", display=Display())
    for part in ("unet", "text_encoder", "text_encoder_2"):
        adapter = load_file(run / "adapter" / part / "adapter_model.safetensors")
        untouched = {name for name, value in adapter.items() if ".lora_B." in name and not value.any()}
        assert all("layers.1." in name and part == "text_encoder" for name in untouched), untouched
        assert len(untouched) == (4 if part == "text_encoder" else 0)
    told: dict[str, Any] = {}
    code = re.search(r"```python\n(.*?)picture = ", (run / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    exec(code[1], told)
    assert drawn_by(told["pipe"]) == drawn_from(run)


@pytest.mark.parametrize(("label", "step"), [("stage 1", 2), ("stage 2", 1)])
def test_a_stopped_run_resumes_bit_for_bit(
    xl_recipe: Recipe, xl_run: Path, tmp_path: Path, label: str, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(xl_recipe, tmp_path / "run", display=Watcher((label, step), ctrl_c))
    run = train(xl_recipe, tmp_path / "run", resume=True, display=Display())
    ours, theirs = of_pipeline(run), of_pipeline(xl_run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert metrics(run) == metrics(xl_run)


def test_another_run_takes_the_token_of_both_text_encoders(xl_recipe: Recipe, xl_run: Path, tmp_path: Path) -> None:
    run = train(xl_recipe, tmp_path / "run", token_from=xl_run, display=Display())
    ours, theirs = of_pipeline(run), of_pipeline(xl_run)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_all_memory_options_train_a_token(xl_recipe: Recipe, tmp_path: Path) -> None:
    """In bfloat16, the frozen nets in 8 bits, activations recomputed."""
    assert xl_recipe.stage1
    options = xl_recipe.stage1.model_copy(update={"gradient_checkpointing": True})
    memory = xl_recipe.memory.model_copy(update={"frozen_base": "8bit"})
    changed = without(xl_recipe, stage1=options, stage2=None, memory=memory, mixed_precision="bf16")
    rows = load_file(train(changed, tmp_path / "run", display=Display()) / "embedding" / "rare.safetensors")
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in rows.values())


def test_samples_of_a_half_precision_run_are_decoded_in_float32(xl_recipe: Recipe, tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    own = AutoencoderKL.decode

    def decode(vae: AutoencoderKL, latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        vae.decoder.conv_out.register_forward_hook(lambda module, shown, output: seen.append(output.dtype))
        return own(vae, latents, *args, **options)

    sample = Sample(prompts=("a {}",), per_prompt=1, num_inference_steps=2)
    changed = without(xl_recipe, stage1=None, token=Token(placeholder="sks"), sample=sample, mixed_precision="bf16")
    memory = xl_recipe.memory.model_copy(update={"weights": "bfloat16"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", decode)
        train(without(changed, memory=memory), tmp_path / "run", display=Display())
    assert set(seen) == {torch.float32}


@pytest.fixture(scope="module")
def drawing(xl_recipe: Recipe) -> Recipe:
    """Two steps of each stage, the U-Net alone in the second, and samples that are guided in every way there is."""
    assert xl_recipe.stage1
    assert xl_recipe.stage2
    sample = Sample(
        prompts=("a photo of a {}",), per_prompt=1, num_inference_steps=2, class_guidance=0.5, away_from="base"
    )
    stage1 = xl_recipe.stage1.model_copy(update={"steps": 2})
    stage2 = xl_recipe.stage2.model_copy(update={"steps": 2, "train_text_encoder": False})
    return without(xl_recipe, stage1=stage1, stage2=stage2, sample=sample)


@pytest.mark.parametrize("source", ["predictions", "photos", "images"])
def test_every_prior_and_all_guidance_work(drawing: Recipe, tmp_path: Path, source: Any) -> None:
    prior = Prior(preserve=True, source=source, num_class_images=2, num_inference_steps=2, states_per_path=1)
    run = train(without(drawing, prior=prior), tmp_path / "run", display=Display())
    weights = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert list((run / "samples").rglob("*.png"))


def test_a_run_is_evaluated_and_its_class_too(drawing: Recipe, tmp_path: Path) -> None:
    run = train(drawing, tmp_path / "run", display=Display())
    options = Evaluation(
        suite="pocket",
        num_prompts=1,
        images_per_prompt=2,
        num_class_images=2,
        num_unrelated_images=1,
        num_inference_steps=2,
        encoders=("dino=pocket", "clip=pocket", "dinov2=none"),
    )
    record = evaluate(run, options, display=Display())
    assert record["choices"]["resolution"] == SIDE
    assert {"dino_seen", "clip_t", "drift_class"} <= record["figures"].keys()
    assert all(math.isfinite(figure["value"]) for figure in record["figures"].values())
