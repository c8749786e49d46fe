"""What a stage takes, measured in its first two steps: from the second on, every step takes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twostage.machine import peak_memory
from twostage.memory.storages import StorageTrace
from twostage.method.loop import Step

GIB = 1 << 30


@dataclass(frozen=True)
class Prediction:
    """What was predicted of a run before it began.

    Attributes:
        peaks: bytes of tensors at the peak of each stage, by its number.
        facts: of the plan, for run.json.
    """

    peaks: Mapping[int, int]
    facts: dict[str, Any]


class Gauge:
    """Measures peaks on a device, of what runs within `on`.

    A GPU's allocator counts by itself. A CPU's does not: there every tensor is followed, if that is asked for, which
    takes time and changes no result; and the process's resident size is known, its peak since it began.

    Args:
        device: measured on.
        tensors: that exist already.
        followed: whether tensors on a CPU are followed.
    """

    def __init__(self, device: torch.device, tensors: Iterable[Tensor], followed: bool) -> None:
        self._device = device
        self._trace = StorageTrace() if followed and device.type != "cuda" else None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        if self._trace:
            self._trace.watch(tensors)
            self._trace.begin()

    def on(self) -> AbstractContextManager[Any]:
        """Within it, tensors are followed, where they have to be."""
        return self._trace or nullcontext()

    def read(self) -> dict[str, int]:
        """Bytes: `allocated` of tensors, where they were counted; of a GPU `reserved` for them, and `device`, what is
        in use of all of it; of a CPU `resident`."""
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            allocated, reserved = (
                read(self._device) for read in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
            )
            return {"allocated": allocated, "reserved": reserved, "device": total - free}
        counted = {"allocated": self._trace.peak} if self._trace else {}
        return counted | {"resident": peak_memory(self._device)}


def measured(steps: Iterator[Step], gauge: Gauge, note: Callable[[dict[str, int]], None]) -> Iterator[Step]:
    """The steps as they come; `note` gets what the first two have taken."""
    for number in (1, 2):
        with gauge.on():
            step = next(steps, None)
        if step is None:
            return
        if number == 2:
            note(gauge.read())
        yield step
    yield from steps


def compared(stage: int, found: Mapping[str, int], prediction: Prediction) -> str:
    """What a stage takes beside what was predicted, in words."""
    predicted = prediction.peaks[stage]
    card = f"; {size(found['device'])} of the card are in use" if "device" in found else ""
    return f"stage {stage} takes {size(found['allocated'])}, predicted {size(predicted)}{card}"


def size(number: int) -> str:
    """Bytes for people, in GiB, or in MiB where that would be 0.0."""
    return f"{number / GIB:.2f} GiB" if number >= GIB / 10 else f"{number / (1 << 20):.1f} MiB"
