"""Latents in the cache: bit for bit what the VAE says, and the VAE is loaded for nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from twostage.errors import UserError
from twostage.families import Base, load_base
from twostage.method.examples import Examples, encode_photos
from twostage.method.latents import encode_picture
from twostage.recipe import Data
from twostage.subject.photos import find_photos

CPU = torch.device("cpu")


def encode(base: Base | Path, photos: Path, **data: object) -> Examples:
    base = base if isinstance(base, Base) else load_base(str(base))
    return encode_photos(base, find_photos(photos), Data.model_validate(data), "<rare> backpack", 0, CPU)


def same(one: Examples, other: Examples) -> bool:
    return all(
        torch.equal(a, b)
        for left, right in zip(one.views, other.views, strict=True)
        for part in ("mean", "std")
        for a, b in zip(getattr(left, part), getattr(right, part), strict=True)
    )


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "latents").rglob("*.safetensors"))


def has_loaded_the_vae(base: Base) -> bool:
    return "vae" in base._loaded


def test_a_second_run_reads_the_same_bits_and_does_not_load_the_vae(
    tiny_base: Path, photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = encode(tiny_base, photos, flip=True)
    assert len(kept(cache)) == 8
    base = load_base(str(tiny_base))
    assert same(encode(base, photos, flip=True), fresh)
    assert not has_loaded_the_vae(base)

    monkeypatch.setenv("TWOSTAGE_CACHE", str(cache / "another"))
    assert same(encode(base, photos, flip=True), fresh)
    assert has_loaded_the_vae(base)


def test_photos_under_other_names_captions_and_masks_are_the_same_pictures(
    tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    encode(tiny_base, photos)
    shutil.copy(photos / "1.png", tmp_path / "renamed.png")
    (tmp_path / "renamed.txt").write_text("a {} on a table")
    base = load_base(str(tiny_base))
    encode(base, tmp_path, unmasked_weight=0.5)
    assert not has_loaded_the_vae(base)


@pytest.mark.parametrize("data", [{"flip": True}, {"fit": "pad"}, {"resolution": 32}])
def test_another_crop_size_or_mirror_image_is_another_picture(
    tiny_base: Path, photos: Path, data: dict[str, object]
) -> None:
    encode(tiny_base, photos)
    base = load_base(str(tiny_base))
    encode(base, photos, **data)
    assert has_loaded_the_vae(base)


@pytest.mark.parametrize(("part", "again"), [("unet", False), ("vae", True)])
def test_the_vae_of_a_base_counts_and_nothing_else_of_it(
    tiny_base: Path, photos: Path, tmp_path: Path, part: str, again: bool
) -> None:
    """Fine-tuned bases mostly keep their VAE, and with it the latents."""
    encode(tiny_base, photos)
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    file = other / part / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    base = load_base(str(other))
    encode(base, photos)
    assert has_loaded_the_vae(base) is again


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def replace_by_another(file: Path) -> None:
    save_file({"mean": torch.zeros(1)}, file)


def replace_by_plain_latents(file: Path) -> None:
    save_file({"mean": torch.zeros(4, 8, 8), "std": torch.zeros(4, 8, 8)}, file)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, replace_by_another, replace_by_plain_latents])
def test_a_broken_file_is_made_again(
    tiny_base: Path, photos: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    fresh = encode(tiny_base, photos)
    file = kept(cache)[2]
    whole = file.read_bytes()
    damage(file)
    assert same(encode(tiny_base, photos), fresh)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tiny_base: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = encode(tiny_base, photos)
    monkeypatch.setenv("TWOSTAGE_CACHE", "/proc/cache")
    assert same(encode(tiny_base, photos), fresh)


def test_what_is_kept_is_what_the_stock_vae_says(tiny_base: Path) -> None:
    pixels = torch.rand(3, 16, 24) * 2 - 1
    base = load_base(str(tiny_base))
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae").eval()
    with torch.no_grad():
        posterior = vae.encode(pixels.unsqueeze(0)).latent_dist
    for _ in range(2):
        mean, std = encode_picture(base, pixels, CPU)
        assert torch.equal(mean, posterior.mean[0] * vae.config.scaling_factor)
        assert torch.equal(std, posterior.std[0] * vae.config.scaling_factor)


def test_latents_that_are_not_finite_are_refused_and_not_kept(tiny_base: Path, photos: Path, cache: Path) -> None:
    base = load_base(str(tiny_base))
    with torch.no_grad():
        base.vae.encoder.conv_in.bias.fill_(float("inf"))
    with pytest.raises(UserError, match="infinite or NaN"):
        encode(base, photos)
    assert not kept(cache)
