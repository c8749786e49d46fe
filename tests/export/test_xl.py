"""A base of two text encoders: every format, loaded by stock diffusers, draws the run's own picture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.random_bases.stable_diffusion_xl import SIZES, write_pipeline
from tests.watching import without
from twostage.display import Display
from twostage.export import Options
from twostage.recipe import Adapter, Checkpoints, Data, Recipe, Sample, Stage1, Stage2, Token
from twostage.run import generate, load_pipeline, train

PROMPT = "a photo of a <rare> backpack"


@pytest.fixture(scope="module")
def xl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusionXLPipeline` folder, 32x32 pixels; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "xl"
    write_pipeline(folder, SIZES["tiny"])
    return folder


@pytest.fixture(scope="module")
def xl_recipe(xl_base: Path, photos: Path) -> Recipe:
    return Recipe(
        name="xl",
        base=str(xl_base),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red", num_vectors=2),
        stage1=Stage1(steps=2, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=2, learning_rate=5e-3, batch_size=2, train_text_encoder=True),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=4, keep=2),
    )


@pytest.fixture(scope="module")
def xl_run(xl_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, the text encoders trained too; never write to it."""
    return train(xl_recipe, tmp_path_factory.mktemp("runs") / "xl", display=Display())


@pytest.fixture(scope="module")
def xl_lora_run(xl_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on every layer that the U-Net can have one on, and on the text encoders; never write to it."""
    stage2 = Stage2(steps=2, learning_rate=2e-2, batch_size=2, train="adapter", train_text_encoder=True)
    adapter = Adapter(kind="lora", rank=2, alpha=3.0, target_modules=("all",))
    recipe = without(xl_recipe, stage2=stage2, adapter=adapter)
    return train(recipe, tmp_path_factory.mktemp("runs") / "xl-lora", display=Display())


def ours(run: Path) -> np.ndarray[Any, Any]:
    return np.asarray(generate(run, PROMPT, count=1, seed=5, num_inference_steps=4, display=Display())[0], dtype=int)


def theirs(pipeline: StableDiffusionXLPipeline) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        PROMPT,
        generator=torch.Generator("cpu").manual_seed(5),
        num_inference_steps=4,
        guidance_scale=7.5,
        width=32,
        height=32,
    ).images[0]
    return np.asarray(picture, dtype=int)


def is_same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """But for rounding: where in memory weights lie that are the same bit for bit, sums are made in another order."""
    return bool(abs(one - other).max() <= 1)


def reads_alike(one: StableDiffusionXLPipeline, other: StableDiffusionXLPipeline) -> bool:
    """Whether two pipelines tell their U-Nets the same of a prompt, its pooled state too, which a picture shows little
    of."""
    told = [pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False) for pipeline in (one, other)]
    return all(mine is None or torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(*told, strict=True))


def give_token(pipeline: StableDiffusionXLPipeline, file: Path) -> None:
    """As diffusers' own pages say for Stable Diffusion XL; and have the token not be taken for the prompt's end."""
    rows = load_file(file)
    assert {name: tuple(value.shape) for name, value in rows.items()} == {"clip_l": (2, 16), "clip_g": (2, 24)}
    for key, text_encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(rows[key], token="<rare>", text_encoder=text_encoder, tokenizer=tokenizer)
    # As published, it takes the highest id for the prompt's end, and that is the token's then.
    pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id


def test_a_pipeline_folder_alone_draws_the_subject(xl_run: Path, export: Any) -> None:
    exported = export(xl_run, "diffusers", Options(dtype="float32"))
    pipeline = StableDiffusionXLPipeline.from_pretrained(exported.folder)
    assert is_same(theirs(pipeline), ours(xl_run))
    assert reads_alike(pipeline, load_pipeline(xl_run))
    half = export(xl_run, "diffusers", name="half")
    stored = load_file(half.folder / "text_encoder_2" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    pipeline = StableDiffusionXLPipeline.from_pretrained(half.folder)
    assert {pipeline.unet.dtype, pipeline.text_encoder.dtype, pipeline.text_encoder_2.dtype} == {torch.float32}
    assert abs(theirs(pipeline) - ours(xl_run)).mean() < 1


@pytest.mark.parametrize("to", ["a1111", "comfyui"])
def test_a_checkpoint_and_the_token_beside_it_draw_the_subject(
    xl_run: Path, xl_base: Path, export: Any, to: str
) -> None:
    exported = export(xl_run, to, Options(dtype="float32"))
    assert sorted(exported.files) == ["embeddings/rare.safetensors", "xl.safetensors"]
    file = exported.folder / "xl.safetensors"
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(xl_base), local_files_only=True, torch_dtype=torch.float32
    )
    tuned = load_pipeline(xl_run)
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, read = (getattr(one, component).state_dict() for one in (tuned, pipeline))
        assert mine.keys() == read.keys()
        # All of the table but the token's rows.
        assert all(torch.equal(value, mine[name][: len(value)]) for name, value in read.items())
    give_token(pipeline, exported.folder / "embeddings" / "rare.safetensors")
    assert is_same(theirs(pipeline), ours(xl_run))
    assert reads_alike(pipeline, tuned)


def test_a_checkpoint_keeps_both_vocabularies_and_is_half_precision(xl_run: Path, export: Any) -> None:
    stored = load_file(export(xl_run, "comfyui").folder / "xl.safetensors")
    places = ("0.transformer.text_model.embeddings.token_embedding.weight", "1.model.token_embedding.weight")
    assert [stored[f"conditioner.embedders.{place}"].shape[0] for place in places] == [1024, 1024]
    assert stored.pop("conditioner.embedders.0.transformer.text_model.embeddings.position_ids").dtype == torch.int64
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all("." in name for name in stored)  # It predicts noise, and says nothing of that.


def test_a_checkpoint_that_predicts_velocity_says_so_itself(
    xl_recipe: Recipe, xl_base: Path, tmp_path: Path, export: Any
) -> None:
    base = Path(shutil.copytree(xl_base, tmp_path / "base"))
    scheduler = EulerDiscreteScheduler.from_pretrained(base / "scheduler")
    changed = scheduler.from_config(scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    changed.save_pretrained(base / "scheduler")
    run = train(without(xl_recipe, base=str(base), stage2=None), tmp_path / "run", display=Display())
    for to in ("a1111", "comfyui"):
        exported = export(run, to, name=to)
        assert sorted(exported.files) == ["embeddings/rare.safetensors", "run.safetensors"]
        keys = load_file(exported.folder / "run.safetensors").keys()
        assert {name for name in keys if "." not in name} == {"v_pred", "ztsnr"}
        assert not any("ModelSamplingDiscrete" in line for line in exported.usage)


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_a_lora_is_read_by_stock_diffusers_under_both_names(
    xl_lora_run: Path, xl_base: Path, export: Any, naming: Any
) -> None:
    exported = export(xl_lora_run, "lora", Options(dtype="float32", naming=naming))
    file = exported.folder / "xl-lora.safetensors"
    with safe_open(file, framework="pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
    if naming == "kohya":
        assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_k.lora_down.weight" in names
        assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in names
        assert "lora_te2_text_model_encoder_layers_1_self_attn_out_proj.alpha" in names
        assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == ("sdxl_base_v1-0", "False")
    else:
        assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight" in names
        assert "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in names
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_base)
    pipeline.load_lora_weights(str(file))
    give_token(pipeline, exported.folder / "embeddings" / "rare.safetensors")
    assert is_same(theirs(pipeline), ours(xl_lora_run))
    assert reads_alike(pipeline, load_pipeline(xl_lora_run))
    assert not is_same(theirs(StableDiffusionXLPipeline.from_pretrained(xl_base)), ours(xl_lora_run))


def test_an_extracted_lora_says_what_it_lost_of_every_net(xl_run: Path, export: Any) -> None:
    exported = export(xl_run, "lora", Options(rank=4))
    told = [line.split(":")[0] for line in exported.usage if "the LoRA lacks" in line]
    assert told == ["unet", "text_encoder", "text_encoder_2"]


def test_the_token_alone_is_read_by_stock_diffusers(xl_run: Path, xl_base: Path, export: Any) -> None:
    exported = export(xl_run, "embedding")
    (file,) = exported.files
    tuned = load_pipeline(xl_run)
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_base)
    for component in ("unet", "text_encoder", "text_encoder_2"):
        own = getattr(pipeline, component).state_dict()
        state = getattr(tuned, component).state_dict()
        getattr(pipeline, component).load_state_dict({name: state[name][: len(own[name])] for name in own})
    give_token(pipeline, exported.folder / file)
    assert is_same(theirs(pipeline), ours(xl_run))
    assert reads_alike(pipeline, tuned)
    assert any("tokenizer=pipe.tokenizer_2" in line for line in exported.usage)


def test_a_delta_is_the_run_bit_for_bit_and_holds_what_changed(xl_run: Path, export: Any) -> None:
    exported = export(xl_run, "delta", Options(dtype="float32"))
    file = exported.folder / "xl.safetensors"
    stored = load_file(file)
    parts = {"unet", "text_encoder", "text_encoder_2", "embedding_clip_l", "embedding_clip_g"}
    assert {name.split(".")[0] for name in stored} == parts
    assert not any("token_embedding" in name for name in stored)
    again, run = load_pipeline(file), load_pipeline(xl_run)
    for component in ("unet", "text_encoder", "text_encoder_2"):
        found, own = (getattr(pipeline, component).state_dict() for pipeline in (again, run))
        assert all(torch.equal(found[name], value) for name, value in own.items())
