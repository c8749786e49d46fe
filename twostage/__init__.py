"""Teach a text-to-image diffusion model one subject from 3 to 5 photos, in two stages."""

__version__ = "0.1.0"
