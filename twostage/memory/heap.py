"""The C library's heap: on a CPU, a training step gets its memory there."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

# Of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have memory that is freed kept for what is allocated next, in this process and from now on.

    glibc gives large blocks back to the system as soon as they are freed. A training step frees all gradients and
    activations, and the next one would get them anew, page by page, each page cleared by the system first: at Stable
    Diffusion's size, a million pages and more than half of a step's time. What is computed is the same bit for bit; the
    process holds its peak until it ends.

    Returns:
        Whether it is so: not where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _NEVER))


def give_back() -> None:
    """Free what only cycles hold, and give what was freed back to the system and to the card, once, where it can be."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
