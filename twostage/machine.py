"""What a run is trained with: libraries, device, memory."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from twostage import __version__

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "numpy")
# Bytes of what CUDA keeps of a card for each process: 0.3 to 0.5 GiB.
_CONTEXT = 1 << 29


def versions() -> dict[str, str]:
    """Of Python, of the libraries that a result depends on, and of this package."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found | {"twostage": __version__}


def facts_of(device: torch.device) -> dict[str, Any]:
    """What a run is trained with, for run.json."""
    return {"versions": versions(), "device": describe(device), "reproducible": reproducible(device)}


def reproducible(device: torch.device) -> str:
    """What the same seed gives again on a device, and what it does not: for people."""
    draws = "the same seed gives the same noise, timesteps, photos and prompts"
    if device.type == "cpu":
        return f"{draws}; with as many threads, the same libraries and kind of processor, the same weights to the bit"
    return f"{draws}; the weights agree but for rounding, since some kernels of a GPU add up in another order each time"


def usual_device() -> str:
    """The GPU where there is one, for what is done outside of training."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe(device: torch.device) -> str:
    """For people: the GPU's name, or of what kind the CPU is and how many threads run on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Of an NVIDIA card; None of anything else."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device) if nvidia else None


def has_fast_bfloat16(capability: tuple[int, int] | None) -> bool:
    """Whether a card computes in bfloat16 no slower than in float16: NVIDIA's do from Ampere on.

    Args:
        capability: from `compute_capability`; None has it, as far as is known.
    """
    return capability is None or capability >= (8, 0)


def room_for_tensors(device: torch.device) -> int:
    """Bytes of a GPU, less what other programs hold of it; of a CPU's memory, what a process may still take of it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # To ask makes a context, which counts as taken and is our own.
        return total - max(0, total - free - _CONTEXT)
    limits = [_available_ram()]
    if resource is not None:
        softs = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
        limits += [soft for soft in softs if soft != resource.RLIM_INFINITY]
    return min(limits)


def _available_ram() -> int:
    """Bytes that are free or can be made so; on systems that do not say, all there are."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sys.maxsize


def peak_memory(device: torch.device) -> int:
    """Bytes: torch's peak allocation on a GPU, the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
