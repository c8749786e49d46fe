"""What a run is trained with: libraries, device, memory."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from twostage import __version__

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "numpy")


def versions() -> dict[str, str]:
    """Of Python, of the libraries that a result depends on, and of this package."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found | {"twostage": __version__}


def usual_device() -> str:
    """The GPU where there is one, for what is done outside of training."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(device: torch.device) -> str:
    """For people: the GPU's name, or of what kind the CPU is and how many threads run on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def peak_memory(device: torch.device) -> int:
    """Bytes: torch's peak allocation on a GPU, the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
