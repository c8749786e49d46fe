"""Every format, loaded by stock diffusers, draws the run's own picture; and its files are what other programs read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.watching import without
from twostage import exporting
from twostage.display import Display
from twostage.errors import UserError
from twostage.export import Options
from twostage.export.shared import proof
from twostage.export.shared.layouts import LAYOUTS
from twostage.recipe import Recipe, Sample, Stage1, Token
from twostage.run import generate, train
from twostage.subject.tokens import embedding_table

PROMPT = "a photo of a <rare> backpack"


def ours(run: Path) -> np.ndarray[Any, Any]:
    return np.asarray(generate(run, PROMPT, count=1, seed=5, num_inference_steps=4, display=Display())[0], dtype=int)


def theirs(pipeline: StableDiffusionPipeline) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    picture: Image.Image = pipeline(
        PROMPT, generator=torch.Generator("cpu").manual_seed(5), num_inference_steps=4, guidance_scale=7.5
    ).images[0]
    return np.asarray(picture, dtype=int)


def untouched(base: Path, **components: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, **components)


def test_a_pipeline_folder_alone_draws_the_subject_by_its_token(finished: Path, export: Any) -> None:
    exported = export(finished, "diffusers", Options(dtype="float32"))
    pipeline = StableDiffusionPipeline.from_pretrained(exported.folder)
    assert (theirs(pipeline) == ours(finished)).all()
    assert exported.largest == 0


def test_a_pipeline_folder_of_half_precision_is_computed_in_one_precision(finished: Path, export: Any) -> None:
    exported = export(finished, "diffusers")
    stored = load_file(exported.folder / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    pipeline = StableDiffusionPipeline.from_pretrained(exported.folder)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    assert abs(theirs(pipeline) - ours(finished)).mean() < 1


@pytest.mark.parametrize("to", ["a1111", "comfyui"])
def test_a_checkpoint_and_the_token_beside_it_draw_the_subject(
    finished: Path, tiny_base: Path, export: Any, to: str
) -> None:
    exported = export(finished, to, Options(dtype="float32"))
    assert sorted(exported.files) == ["embeddings/rare.safetensors", "finished.safetensors"]
    pipeline = StableDiffusionPipeline.from_single_file(
        str(exported.folder / "finished.safetensors"),
        config=str(tiny_base),
        local_files_only=True,
        torch_dtype=torch.float32,
    )
    embedding = exported.folder / "embeddings" / "rare.safetensors"
    pipeline.load_textual_inversion(str(embedding), token="<rare>")
    assert (theirs(pipeline) == ours(finished)).all()
    rows = load_file(embedding)
    assert {name: tuple(value.shape) for name, value in rows.items()} == {"emb_params": (2, 16)}


def test_a_checkpoint_keeps_the_vocabulary_of_the_base_and_is_half_precision(finished: Path, export: Any) -> None:
    exported = export(finished, "a1111")
    stored = load_file(exported.folder / "finished.safetensors")
    text = "cond_stage_model.transformer.text_model.embeddings"
    assert stored[f"{text}.token_embedding.weight"].shape == (1024, 16)
    assert stored.pop(f"{text}.position_ids").dtype == torch.int64
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_a_checkpoint_has_the_bases_own_rows_where_a_longer_table_has_the_token(
    tiny_recipe: Recipe, tmp_path: Path, export: Any
) -> None:
    base = Path(shutil.copytree(tiny_recipe.base, tmp_path / "base"))
    encoder = untouched(base).text_encoder
    encoder.resize_token_embeddings(1030)
    encoder.save_pretrained(base / "text_encoder")
    recipe = without(tiny_recipe, base=str(base), stage2=None, sample=Sample(per_prompt=0))
    run = train(recipe, tmp_path / "run", display=Display())
    stored = load_file(export(run, "comfyui", Options(dtype="float32")).folder / "run.safetensors")
    table = stored["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    assert torch.equal(table, embedding_table(encoder))


@pytest.fixture
def velocity_run(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    """A run on a base that predicts velocity, with a zero terminal signal-to-noise ratio."""
    base = Path(shutil.copytree(tiny_recipe.base, tmp_path / "base"))
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    StableDiffusionPipeline.from_pretrained(base, scheduler=scheduler).save_pretrained(base)
    recipe = without(
        tiny_recipe,
        base=str(base),
        stage1=Stage1(steps=1, learning_rate=1e-3),
        stage2=None,
        sample=Sample(per_prompt=0),
    )
    return train(recipe, tmp_path / "run", display=Display())


def test_a_base_that_predicts_velocity_gets_what_other_programs_need_to_know_it(
    velocity_run: Path, export: Any
) -> None:
    exported = export(velocity_run, "a1111")
    settings = yaml.safe_load((exported.folder / "run.yaml").read_text(encoding="utf-8"))["model"]["params"]
    assert settings["parameterization"] == "v"
    assert (settings["linear_start"], settings["linear_end"]) == (0.00085, 0.012)
    unet = settings["unet_config"]["params"]
    assert (unet["model_channels"], unet["channel_mult"], unet["num_res_blocks"]) == (8, [1, 2], 1)
    assert (unet["context_dim"], unet["num_heads"], unet["attention_resolutions"]) == (16, 2, [1])
    assert settings["cond_stage_config"]["target"].endswith("FrozenCLIPEmbedder")
    assert any("Zero Terminal SNR" in line for line in exported.usage)
    exported = export(velocity_run, "comfyui", name="comfyui")
    assert any("sampling v_prediction, zsnr true" in line for line in exported.usage)


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_the_token_alone_is_read_by_stock_diffusers(finished: Path, tiny_base: Path, export: Any, naming: Any) -> None:
    exported = export(finished, "embedding", Options(naming=naming))
    (file,) = exported.files
    assert list(load_file(exported.folder / file)) == ["emb_params" if naming == "kohya" else "<rare>"]
    unet = type(untouched(tiny_base).unet).from_pretrained(finished / "unet")
    pipeline = untouched(tiny_base, unet=unet)
    pipeline.load_textual_inversion(str(exported.folder / file), **({"token": "<rare>"} if naming == "kohya" else {}))
    assert (theirs(pipeline) == ours(finished)).all()


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_a_lora_is_read_by_stock_diffusers_under_both_names(
    lora_run: Path, tiny_base: Path, export: Any, naming: Any
) -> None:
    exported = export(lora_run, "lora", Options(dtype="float32", naming=naming))
    stored = load_file(exported.folder / "lora.safetensors")
    if naming == "kohya":
        stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
        assert stored[f"{stem}.lora_down.weight"].shape == (2, 16)
        assert stored[f"{stem}.lora_up.weight"].shape == (16, 2)
        assert stored[f"{stem}.alpha"] == 2
        assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in stored
        assert {name.split(".", 1)[1] for name in stored} == {"lora_down.weight", "lora_up.weight", "alpha"}
    else:
        assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight" in stored
    pipeline = untouched(tiny_base)
    pipeline.load_lora_weights(str(exported.folder / "lora.safetensors"))
    embedding = str(exported.folder / "embeddings" / "rare.safetensors")
    pipeline.load_textual_inversion(embedding, token="<rare>")
    assert abs(theirs(pipeline) - ours(lora_run)).max() <= 1  # Added at each layer, merged in the run.
    assert abs(theirs(untouched(tiny_base)) - ours(lora_run)).max() > 1


def test_an_extracted_lora_says_what_it_lost_and_loses_less_with_rank(finished: Path, export: Any) -> None:
    reports = []
    for rank in (1, 16):
        exported = export(finished, "lora", Options(rank=rank), name=f"rank{rank}")
        assert exported.tolerance is None
        (report,) = [line for line in exported.usage if line.startswith("unet: the LoRA lacks")]
        reports.append(float(report.split("lacks ")[1].split("%")[0]))
        stored = load_file(exported.folder / "finished.safetensors")
        assert {len(value) for name, value in stored.items() if name.endswith("lora_down.weight")} == {rank}
    assert reports[0] > 60
    # All that is left is the biases and norms.
    assert reports[1] < 25
    assert "worst layer" in report
    with safe_open(exported.folder / "finished.safetensors", framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "16"


def test_a_run_without_the_thing_to_export_is_told_what_to_do(
    finished: Path, lora_run: Path, tmp_path: Path, export: Any
) -> None:
    for options, match in (
        (Options(), "give the --rank"),
        (Options(rank=0), "at least 1"),
        (Options(rank=33), "full rank at 32"),
    ):
        with pytest.raises(UserError, match=match):
            export(finished, "lora", options)
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    config = run / "adapter" / "unet" / "adapter_config.json"
    settings = json.loads(config.read_text())
    for kind, text_encoder, way in (("OFT", True, "--rank"), ("LORA", True, "--rank"), ("LORA", False, "--naming")):
        if not text_encoder:
            shutil.rmtree(run / "adapter" / "text_encoder")
        config.write_text(json.dumps({**settings, "peft_type": kind, "use_dora": kind == "LORA"}))
        with pytest.raises(UserError, match="of kind (oft|dora), which cannot be such a LoRA") as error:
            export(run, "lora")
        assert way in str(error.value)
        assert "--to a1111" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_run_that_learned_no_token_or_no_weights_is_refused(tiny_recipe: Recipe, tmp_path: Path, export: Any) -> None:
    quick = without(tiny_recipe, sample=Sample(per_prompt=0))
    word = train(without(quick, token=Token(placeholder="sks"), stage1=None), tmp_path / "word", display=Display())
    with pytest.raises(UserError, match="learned no token"):
        export(word, "embedding")
    assert list(export(word, "comfyui").files) == ["word.safetensors"]
    token = train(without(quick, stage2=None), tmp_path / "token", display=Display())
    with pytest.raises(UserError, match="tuned no weights"):
        export(token, "lora", Options(rank=4), name="lora")


def test_a_base_that_other_programs_names_are_not_known_for_is_told_what_there_is(
    finished: Path, lora_run: Path, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(LAYOUTS, "StableDiffusionPipeline")
    for run, to in ((finished, "a1111"), (finished, "comfyui"), (lora_run, "lora")):
        with monkeypatch.context() as patch:
            patch.setattr(exporting, "load_pipeline", lambda folder: pytest.fail("a pipeline was read in vain"))
            with pytest.raises(UserError, match=r"is a StableDiffusionPipeline; choose --to diffusers, ") as error:
                export(run, to)
        assert "--naming diffusers" in str(error.value)
    assert not (tmp_path / "out").exists()
    for run, to, naming in (
        (finished, "diffusers", None),
        (finished, "embedding", None),
        (finished, "delta", None),
        (lora_run, "lora", "diffusers"),
    ):
        exported = export(run, to, Options(naming=naming), name=to)
        assert not any("A1111" in line or "ComfyUI" in line for line in exported.usage)


def test_an_export_that_draws_something_else_leaves_nothing(
    finished: Path, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(proof.TOLERANCE, "float16", -1.0)
    with pytest.raises(UserError, match="draws another picture"):
        export(finished, "diffusers")
    assert not list(tmp_path.iterdir())


def test_an_export_that_lacks_a_weight_leaves_nothing(
    finished: Path, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding to bfloat16 where float16 was asked for is the smallest mistake there is."""
    monkeypatch.setitem(proof._ROUNDING, "bfloat16", 2**-10)
    with pytest.raises(UserError, match=r"is not what the run has"):
        export(finished, "comfyui", Options(dtype="bfloat16"))
    assert not list(tmp_path.iterdir())


def test_a_number_that_half_precision_cannot_hold_is_told(finished: Path, tmp_path: Path, export: Any) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "samples")))
    unet = type(untouched(Path(json.loads((run / "run.json").read_text())["base"]["name"])).unet).from_pretrained(
        run / "unet"
    )
    with torch.no_grad():
        unet.conv_out.bias[0] = 1e5
    unet.save_pretrained(run / "unet")
    with pytest.raises(UserError, match=r"conv_out.bias reaches 1e\+05.*bfloat16"):
        export(run, "diffusers")


def test_an_output_that_is_taken_is_refused(finished: Path, tmp_path: Path, export: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        export(finished, "embedding")
    assert (tmp_path / "out" / "letter.txt").read_text() == "x"
