"""Stable Diffusion XL."""

from benchmarks.random_bases import stable_diffusion_xl

BASES = {"sdxl": lambda folder: stable_diffusion_xl.write_pipeline(folder, stable_diffusion_xl.SIZES["tiny"])}
