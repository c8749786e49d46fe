"""Pretrained pipelines: found, checked before anything is loaded, read in stock layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from benchmarks.random_sd15 import SIZES, make_tokenizer, write_pipeline
from twostage.errors import UserError
from twostage.families import known_families, load_base
from twostage.method.sampling import assemble, check_steps


@pytest.fixture
def own_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_components_are_those_of_stock_diffusers(tiny_base: Path) -> None:
    base, stock = load_base(str(tiny_base)), StableDiffusionPipeline.from_pretrained(tiny_base)
    for name in ("text_encoder", "vae", "unet"):
        ours, theirs = base.component(name), getattr(stock, name)
        assert type(ours) is type(theirs)
        assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert base.resolution == stock.unet.config.sample_size * stock.vae_scale_factor == 16
    assert torch.equal(base.noise_scheduler.alphas_cumprod, stock.scheduler.alphas_cumprod)


def test_prompt_states_are_those_of_stock_diffusers(tiny_base: Path) -> None:
    base, stock = load_base(str(tiny_base)), StableDiffusionPipeline.from_pretrained(tiny_base)
    prompts = ["a photo of a red backpack", "snow"]
    ours = base.encode_text(prompts)["states"]
    assert torch.equal(ours, stock.encode_prompt(prompts, "cpu", 1, False)[0])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_prediction_type_is_the_folders(tmp_path: Path, kind: str) -> None:
    write_pipeline(tmp_path / "base", SIZES["tiny"], prediction_type=kind)
    assert load_base(str(tmp_path / "base")).noise_scheduler.config.prediction_type == kind


def test_weights_stored_as_float16_are_float32_in_training_and_drawing(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "base", SIZES["tiny"], dtype=torch.float16)
    base = load_base(str(tmp_path / "base"))
    pipeline = assemble(base)
    for name in ("text_encoder", "vae", "unet"):
        assert base.component(name).dtype == getattr(pipeline, name).dtype == torch.float32
    pipeline("a dog", num_inference_steps=1)


def test_the_noise_levels_are_the_folders_down_to_zero_signal(own_base: Path) -> None:
    """As of a base that was trained with v-prediction and sampled by DDIM (arXiv 2305.08891)."""
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )
    StableDiffusionPipeline.from_pretrained(own_base, scheduler=scheduler).save_pretrained(own_base)
    base = load_base(str(own_base))
    assert torch.equal(base.noise_scheduler.alphas_cumprod, scheduler.alphas_cumprod)
    assert base.noise_scheduler.alphas_cumprod[-1] == 0
    assert base.noise_scheduler.config.prediction_type == "v_prediction"
    drawn_by = assemble(base).scheduler
    assert type(drawn_by) is DDIMScheduler
    assert drawn_by.config.timestep_spacing == "trailing"


def test_a_component_is_read_when_first_asked_for_and_again_after_release(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    unet = base.denoiser
    assert base.denoiser is unet
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    base.release("unet")
    assert base.denoiser is not unet
    assert base.denoiser.conv_in.weight.any()


def test_loading_says_nothing(tiny_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = load_base(str(tiny_base))
    _ = base.tokenizer, base.text_encoder, base.vae, base.denoiser, base.noise_scheduler
    assert capfd.readouterr() == ("", "")


def test_the_content_hash_follows_the_weights(tiny_base: Path, own_base: Path) -> None:
    assert load_base(str(tiny_base)).content_hash == load_base(str(own_base)).content_hash
    weights = own_base / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_base(str(tiny_base)).content_hash != load_base(str(own_base)).content_hash


def test_a_family_is_a_file() -> None:
    assert "StableDiffusionPipeline" in known_families()


def refuse(base: Path | str, *words: str) -> None:
    with pytest.raises(UserError) as error:
        load_base(str(base))
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_what_is_no_pipeline_is_refused_in_one_line(tmp_path: Path) -> None:
    refuse(tmp_path / "missing", "missing", "no folder")
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / "file", "is a file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "model_index.json")
    (tmp_path / "empty" / "model_index.json").write_text("{")
    refuse(tmp_path / "empty", "model_index.json")
    (tmp_path / "empty" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    refuse(tmp_path / "empty", "FluxPipeline", "StableDiffusionPipeline")


def test_a_pipeline_with_a_part_missing_or_broken_is_refused_in_one_line(own_base: Path) -> None:
    weights = own_base / "vae" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    refuse(own_base, str(weights), "broken")
    weights.write_bytes(b"")
    refuse(own_base, str(weights), "broken")
    weights.unlink()
    refuse(own_base, "vae", "safetensors")
    shutil.rmtree(own_base / "vae")
    refuse(own_base, "vae/")


def test_pickled_weights_are_never_read(own_base: Path) -> None:
    folder = own_base / "unet"
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    refuse(own_base, "unet", "safetensors")


def test_weights_of_another_shape_are_refused_in_one_line(own_base: Path) -> None:
    config = own_base / "unet" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "cross_attention_dim": 24}))
    base = load_base(str(own_base))
    with pytest.raises(UserError, match="unet") as error:
        _ = base.denoiser
    assert "\n" not in str(error.value)


def _use(folder: Path) -> None:
    base = load_base(str(folder))
    for model in base.family.models:
        base.outline(model)
    check_steps(base, 2)
    assemble(base)


# Part, setting, value: found by fuzzing, each was a traceback.
ODD = [
    ("vae", "up_block_types", [True]),
    ("unet", "out_channels", -4),
    ("unet", "sample_size", 10**9),
    ("unet", "sample_size", "8"),
    ("text_encoder", "num_attention_heads", None),
    ("text_encoder", "hidden_act", "x" * 1000),
    ("scheduler", "_class_name", 3),
    ("scheduler", "num_train_timesteps", 0),
]


@pytest.mark.parametrize(("part", "name", "value"), ODD)
def test_a_setting_of_another_kind_is_refused_in_one_line(own_base: Path, part: str, name: str, value: object) -> None:
    file = own_base / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(UserError) as caught:
        _use(own_base)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", ["[" * 100_000, '{"version": "1.0", "model": null}', "{}"])
def test_a_tokenizer_that_is_none_is_refused_in_one_line(own_base: Path, content: str) -> None:
    (own_base / "tokenizer" / "tokenizer.json").write_text(content)
    for use in (assemble, lambda base: base.tokenizer):
        with pytest.raises(UserError, match="cannot load") as caught:
            use(load_base(str(own_base)))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("length", [78, 10**30, 0, -1, "77", None])
def test_prompts_of_another_length_than_the_text_encoders_are_refused(own_base: Path, length: object) -> None:
    file = own_base / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": length}))
    for use in (assemble, lambda base: base.tokenizer):
        with pytest.raises(UserError, match="cannot load .*tokenizer"):
            use(load_base(str(own_base)))


@pytest.mark.parametrize(
    ("part", "file"),
    [("text_encoder", "model"), ("vae", "diffusion_pytorch_model"), ("unet", "diffusion_pytorch_model")],
)
def test_weights_that_lack_a_tensor_are_refused(own_base: Path, part: str, file: str) -> None:
    """transformers would draw it at random, and diffusers go on without."""
    weights = own_base / part / f"{file}.safetensors"
    tensors = load_file(weights)
    tensors["another"] = tensors.pop(sorted(tensors)[0])
    save_file(tensors, weights, {"format": "pt"})
    for use in (assemble, lambda base: base.component(part)):
        with pytest.raises(UserError, match=f"cannot load .*{part}: the weights lack "):
            use(load_base(str(own_base)))


@pytest.mark.parametrize("what", ["link", "folder"])
def test_a_base_whose_files_are_none_has_no_hash(own_base: Path, what: str) -> None:
    file = own_base / "tokenizer" / "tokenizer.json"
    file.unlink()
    file.symlink_to("nowhere") if what == "link" else file.mkdir()
    with pytest.raises(UserError, match="cannot read .*tokenizer.json: "):
        _ = load_base(str(own_base)).content_hash


def test_a_hub_id_without_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Port 9 of this machine answers nobody.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse("someone/nothing-here", "someone/nothing-here", "hub")


def test_the_built_vocabulary_is_clips_in_size_and_reads_anything() -> None:
    tokenizer = make_tokenizer(49408)
    assert len(tokenizer) == 49408
    assert len(tokenizer("a photo of a backpack", add_special_tokens=False).input_ids) == 5
    text = "naïve 背包 🎒 x=1"
    assert tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.replace(
        " ", ""
    )
