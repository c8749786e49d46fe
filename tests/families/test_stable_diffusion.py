"""Stable Diffusion 1.x and 2.x."""

from benchmarks import random_sd15
from benchmarks.random_bases import stable_diffusion_2

BASES = {
    "sd15": lambda folder: random_sd15.write_pipeline(folder, random_sd15.SIZES["tiny"]),
    "sd2": lambda folder: stable_diffusion_2.write_pipeline(folder, stable_diffusion_2.SIZES["tiny"]),
    "sd2-base": lambda folder: stable_diffusion_2.write_pipeline(folder, stable_diffusion_2.SIZES["tiny-base"]),
}
