"""Bytes: what a card of so much memory leaves for tensors, and what a run needs beside the card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twostage.errors import UserError
from twostage.gauge import GIB
from twostage.planning.rehearsal import Phase, Rehearsed
from twostage.recipe import Recipe

_MEASURED = json.loads((Path(__file__).parent / "overhead.json").read_text(encoding="utf-8"))
# What a card holds beside what torch reserves, at least and as a rule, in GiB: the driver's context and the libraries'
# workspaces. The file says where the figures come from.
OVERHEAD = (_MEASURED["least"], _MEASURED["usual"])
# GiB of a process that trains on a CPU, beside its tensors; and as a rule a tenth of these more, for what operations
# take for themselves and what the heap cannot give back.
PROCESS = (0.6, 1.0)
# GiB of a process that has loaded torch, CUDA and the libraries: an estimate.
_PROCESS = 2

# torch takes pinned memory in powers of two: of Stable Diffusion XL's tensors, 1.31 times as much; of 1.5's, 1.21.
_PINNED = 1.3

_UNITS = {"m": 1 << 20, "g": GIB, "t": 1 << 40}


def read_size(text: str) -> int:
    """Bytes of "8GB", "8 GiB", "8g" or "8192MB"; memory is sold in powers of two, so both mean the same.

    Raises:
        UserError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mgt])(?:i?b)?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--vram {text!r} is no size of memory; write it as 8GB, 12GB or 8192MB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def card_needs(phase: Phase) -> tuple[float, float]:
    """GiB a card has in use in the phase, at least and as a rule: an estimate."""
    least, usual = (phase.reserved / GIB + more for more in OVERHEAD)
    return least, usual


def fits(phase: Phase, vram: int) -> str:
    """Whether a card of `vram` bytes has room: "yes", "perhaps" where little else may be on it, or "no"."""
    least, usual = card_needs(phase)
    return "yes" if usual * GIB <= vram else "perhaps" if least * GIB <= vram else "no"


@dataclass(frozen=True)
class Machine:
    """What a run is to fit.

    Attributes:
        name: of what is limited: "card" or "memory".
        needs: a run -> GiB it takes of that, at least and as a rule: an estimate.
        fast_bfloat16: whether it is fast at bfloat16.
    """

    name: str
    needs: Callable[[Rehearsed], tuple[float, float]]
    fast_bfloat16: bool = True


def _needs_of_card(rehearsed: Rehearsed) -> tuple[float, float]:
    return card_needs(rehearsed.decisive)


def _needs_of_process(rehearsed: Rehearsed) -> tuple[float, float]:
    """On a CPU, where the host is the card: tensors, or a net as it is read, and the process itself."""
    tensors = max(rehearsed.largest_part, *(phase.allocated + phase.host for phase in rehearsed.phases)) / GIB
    least, usual = PROCESS
    return tensors + least, 1.1 * tensors + usual


CARD, CPU = Machine("card", _needs_of_card), Machine("memory", _needs_of_process)


@dataclass(frozen=True)
class Room:
    """What a run needs beside the card, in bytes, at most.

    Attributes:
        disk: of the run folder while it is written.
        samples: of these, pictures as they are before they are compressed.
        cache: of class images.
        ram: of the host: an estimate.
    """

    disk: int
    samples: int
    cache: int
    ram: int


def room(recipe: Recipe, rehearsed: Rehearsed, side: int) -> Room:
    """What a run needs beside the card; `side` of its pictures, in pixels."""
    checkpoints, picture = recipe.checkpoints, 3 * side * side
    held = 0
    for stage in rehearsed.saved:
        due = sum(checkpoints.due(step) for step in range(1, stage.steps))
        # A new one is written before the oldest goes.
        held = max(held, min(due, checkpoints.keep + 1 + len(checkpoints.at)) * sum(stage.files))
    results = sum(stage.result for stage in rehearsed.saved)
    drawn = sum(phase.count for phase in rehearsed.phases if phase.name.endswith("samples"))
    samples = 2 * drawn * picture  # Each is on a sheet once more.
    files = [size for stage in rehearsed.saved for size in stage.files]
    prior, waiting = recipe.prior, max(phase.host for phase in rehearsed.phases)
    return Room(
        disk=held + results + samples,
        samples=samples,
        cache=prior.num_class_images * picture if prior.wanted and prior.source == "images" else 0,
        # A net on its way to the card, or a checkpoint's file on its way to disk; and what waits for the card.
        ram=_PROCESS * GIB + max(rehearsed.largest_part, *files) + round(_PINNED * waiting),
    )
