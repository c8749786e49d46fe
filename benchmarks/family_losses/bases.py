"""Tiny pipelines of random weights, as the scripts and our families read them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import random_sd15
from benchmarks.random_bases import deepfloyd_if, stable_diffusion_3, stable_diffusion_xl

BASES: dict[str, Callable[[Path], None]] = {
    "sd15": partial(random_sd15.write_pipeline, size=random_sd15.SIZES["tiny"]),
    "sdxl": partial(stable_diffusion_xl.write_pipeline, size=stable_diffusion_xl.SIZES["tiny"]),
    "sdxl-velocity": partial(
        stable_diffusion_xl.write_pipeline, size=stable_diffusion_xl.SIZES["tiny"], prediction_type="v_prediction"
    ),
    "if-1": partial(deepfloyd_if.write_pipeline, size=deepfloyd_if.SIZES["tiny"]),
    "if-2": partial(deepfloyd_if.write_pipeline, size=deepfloyd_if.SIZES["tiny-ii"]),
    "sd3": partial(stable_diffusion_3.write_pipeline, size=stable_diffusion_3.SIZES["tiny"]),
}
# Side of their pictures, in pixels.
SIDES = {"sd15": 16, "sdxl": 32, "sdxl-velocity": 32, "if-1": 16, "if-2": 32, "sd3": 32}


def write_base(folder: Path, name: str) -> Path:
    """Where the base is, once written."""
    if not (folder / name).is_dir():
        BASES[name](folder / name)
    return folder / name
