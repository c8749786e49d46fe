"""The random bases of other families are what their names say, as far as stock diffusers and published sizes tell."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from benchmarks.random_bases import deepfloyd_if, stable_diffusion_2, stable_diffusion_3, stable_diffusion_xl
from benchmarks.random_bases.parts import OPENAI_CLIP, T5Size, make_clip, make_t5, make_t5_tokenizer

TINY = {
    "sd2": (stable_diffusion_2, "tiny", "StableDiffusionPipeline", 16),
    "sd2-base": (stable_diffusion_2, "tiny-base", "StableDiffusionPipeline", 16),
    "sdxl": (stable_diffusion_xl, "tiny", "StableDiffusionXLPipeline", 32),
    "if-i": (deepfloyd_if, "tiny", "IFPipeline", 16),
    "if-ii": (deepfloyd_if, "tiny-ii", "IFSuperResolutionPipeline", 32),
    "sd3": (stable_diffusion_3, "tiny", "StableDiffusion3Pipeline", 32),
}
# In millions, and to how many of them the published number is exact. The table of positions in Stable Diffusion 3's
# checkpoint, another 57 million, is no parameter.
PUBLISHED = {
    "sd21": (lambda: stable_diffusion_2.make_unet(stable_diffusion_2.SIZES["sd21"]), 866, 1),
    "sdxl": (lambda: stable_diffusion_xl.make_unet(stable_diffusion_xl.SIZES["sdxl"]), 2567, 1),
    "sd3": (lambda: stable_diffusion_3.make_transformer(stable_diffusion_3.SIZES["sd3"]), 2028, 1),
    "if-i-m": (lambda: deepfloyd_if.make_unet(deepfloyd_if.SIZES["if-i-m"]), 372, 1),
    "if-i-xl": (lambda: deepfloyd_if.make_unet(deepfloyd_if.SIZES["if-i-xl"]), 4300, 100),
    "if-ii-m": (lambda: deepfloyd_if.make_unet(deepfloyd_if.SIZES["if-ii-m"]), 450, 50),
    "if-ii-l": (lambda: deepfloyd_if.make_unet(deepfloyd_if.SIZES["if-ii-l"]), 1200, 100),
    "OpenAI's CLIP": (lambda: make_clip(OPENAI_CLIP), 123, 1),
    "OpenCLIP bigG": (lambda: make_clip(stable_diffusion_xl.Size().text_2, projected=True), 695, 1),
    "OpenCLIP H": (lambda: make_clip(stable_diffusion_2.Size().text), 340, 1),
    "T5 XXL": (lambda: make_t5(T5Size()), 4762, 1),
}


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What diffusers and transformers warn of. Their loggers hand nothing up, so pytest's own capture sees nothing."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    libraries = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for library in libraries:
        library.addHandler(handler)
    yield lines
    for library in libraries:
        library.removeHandler(handler)


def _draw(pipeline: DiffusionPipeline, seed: int) -> numpy.ndarray:
    asked: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": 4}
    if "image_noising_scheduler" in pipeline.components:
        asked["image"] = Image.new("RGB", (16, 16), "teal")
    if type(pipeline).__name__.startswith("IF"):
        asked["clean_caption"] = False
    (picture,) = pipeline("a photo of a red dog", **asked).images
    return numpy.asarray(picture)


@pytest.mark.parametrize(("family", "size", "pipeline_class", "side"), TINY.values(), ids=TINY)
def test_stock_diffusers_loads_it_and_draws_the_seeds_picture(
    tmp_path: Path, said: list[str], family: ModuleType, size: str, pipeline_class: str, side: int
) -> None:
    family.write_pipeline(tmp_path, family.SIZES[size])
    said.clear()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert not said
    assert type(pipeline).__name__ == pipeline_class
    pipeline.set_progress_bar_config(disable=True)
    first, again, other = (_draw(pipeline, seed) for seed in (1, 1, 2))
    assert first.shape == (side, side, 3)
    assert numpy.array_equal(first, again) and not numpy.array_equal(first, other)
    assert first.std() > 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1_200_000


def test_weights_are_the_seeds(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        stable_diffusion_3.write_pipeline(tmp_path / name, stable_diffusion_3.SIZES["tiny"], seed=seed)
    for weights in (tmp_path / "a").rglob("*.safetensors"):
        same, other = (tmp_path / name / weights.relative_to(tmp_path / "a") for name in "bc")
        assert weights.read_bytes() == same.read_bytes() != other.read_bytes()


def test_the_two_tokenizers_differ_in_padding_alone(tmp_path: Path) -> None:
    stable_diffusion_xl.write_pipeline(tmp_path, stable_diffusion_xl.SIZES["tiny"])
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    first, second = pipeline.tokenizer, pipeline.tokenizer_2
    assert first.get_vocab() == second.get_vocab() and first.model_max_length == second.model_max_length == 77
    assert first("a red dog").input_ids == second("a red dog").input_ids
    assert (first.pad_token, second.pad_token, second.pad_token_id) == ("<|endoftext|>", "!", 0)


def test_a_refiner_has_the_second_encoder_only(tmp_path: Path) -> None:
    stable_diffusion_xl.write_pipeline(tmp_path, stable_diffusion_xl.SIZES["tiny"], refiner=True)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionXLImg2ImgPipeline"
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert DiffusionPipeline.from_pretrained(tmp_path).text_encoder_2 is not None


@pytest.mark.parametrize("family", [deepfloyd_if, stable_diffusion_3], ids=["if-i", "sd3"])
def test_without_t5_there_is_no_t5(tmp_path: Path, family: ModuleType) -> None:
    family.write_pipeline(tmp_path, family.SIZES["tiny"], t5=False)
    # Stock asks that Stable Diffusion 3's be declined by name, whatever the index says.
    declined = {"text_encoder_3": None, "tokenizer_3": None} if family is stable_diffusion_3 else {}
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, **declined)
    assert "T5EncoderModel" not in {type(component).__name__ for component in pipeline.components.values()}


@pytest.mark.parametrize("vocabulary", [512, 996, 5000])
def test_t5s_tokenizer_has_as_many_entries_as_asked_for(vocabulary: int) -> None:
    tokenizer = make_t5_tokenizer(vocabulary, max_length=77)
    assert len(tokenizer) == vocabulary
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, vocabulary - 1]) == ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    assert tokenizer.tokenize("a photo of a backpack") == ["▁a", "▁photo", "▁of", "▁a", "▁backpack"]
    assert tokenizer.decode(tokenizer("a red sks dog").input_ids, skip_special_tokens=True) == "a red sks dog"


@pytest.mark.parametrize(("make", "millions", "within"), PUBLISHED.values(), ids=PUBLISHED)
def test_real_sizes_have_the_published_number_of_weights(make: Any, millions: int, within: int) -> None:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in make().parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=within)
