"""Pipelines of other model families with random weights: the published configuration, stock classes, stock layout.

Nothing is downloaded, and stock diffusers loads what they write. Each module has its SIZES, the real one and tiny ones
for tests, `write_pipeline`, and a command line:

    python -m benchmarks.random_bases.stable_diffusion_xl FOLDER [--seed 0] [--dtype float32] [--size tiny]
"""
