"""What the parts of a run take, and which of them several recipes have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twostage.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """What is computed, and what is copied meanwhile.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention.
        half: those of them in half precision.
        copied: bytes between card and host, both ways together.
    """

    flops: int = 0
    half: int = 0
    copied: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.half + other.half, self.copied + other.copied)

    def __sub__(self, other: Work) -> Work:
        return self + other.times(-1)

    def times(self, factor: float) -> Work:
        return Work(round(self.flops * factor), round(self.half * factor), round(self.copied * factor))


@dataclass(frozen=True)
class Phase:
    """What a part of a run takes.

    Attributes:
        name: of the part.
        allocated: bytes of tensors at the peak: what `torch.cuda.max_memory_allocated` says on a card.
        reserved: bytes that torch's allocator holds for them.
        work: of one unit.
        count: units there are.
        unit: "step", "picture" or "checkpoint".
        host: bytes of tensors that wait on the host, at most.
    """

    name: str
    allocated: int
    reserved: int
    work: Work
    count: int
    unit: str
    host: int = 0


@dataclass(frozen=True)
class Saved:
    """What a stage writes.

    Attributes:
        steps: it has.
        files: bytes of each of a checkpoint's files.
        result: bytes of what it leaves in the run folder.
    """

    steps: int
    files: tuple[int, ...]
    result: int


@dataclass(frozen=True)
class Rehearsed:
    """A run's phases in their order, and what its stages write.

    Attributes:
        phases: those that the recipe has.
        saved: by each stage.
        largest_part: bytes of the largest net, as it is read from disk, float32.
    """

    phases: list[Phase]
    saved: list[Saved]
    largest_part: int

    @property
    def decisive(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.reserved)


@dataclass(frozen=True)
class Parts:
    """Parts of a run: what each takes, and what stages write."""

    phases: list[Phase] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)


class Known:
    """What rehearsals of similar recipes have found: what none of their differences touches is found once.

    It is for recipes of bases that do not change meanwhile.

    Attributes:
        works: for `StorageTrace.once`, of what draws pictures.
    """

    def __init__(self) -> None:
        self.works: dict[Any, Any] = {}
        self._found: dict[str, Parts] = {}

    def parts(self, name: str, recipe: Recipe, found: Parts, measure: Callable[[], None]) -> None:
        """Have `found` grow by what `measure` adds to it, or has added for an equal part of another recipe.

        Args:
            name: of the part of a run, one of `_REGARDLESS`.
            recipe: in full.
            found: so far.
            measure: leaves all else as it was.
        """
        key = that_matters(name, recipe)
        if key not in self._found:
            phases, saved = len(found.phases), len(found.saved)
            measure()
            self._found[key] = Parts(found.phases[phases:], found.saved[saved:])
        else:
            found.phases.extend(self._found[key].phases)
            found.saved.extend(self._found[key].saved)


# What of a recipe does not touch a part of a run. What is not named here is taken to touch it.
_TRAINING = ("optimizer", "optimizer_state", "step_in_backward", "activations")
_STAGE_2 = ("optimizer", "optimizer_state", "step_in_backward", "weights")
_BATCHES = ("batch_size", "gradient_accumulation_steps", "max_grad_norm")
_REGARDLESS: dict[str, dict[str, tuple[str, ...]]] = {
    "encode": {"": ("stage1", "stage2", "sample"), "memory": (*_TRAINING, "weights", "streamed", "frozen_base")},
    "class images": {"": ("stage1", "stage2", "sample"), "memory": (*_TRAINING, "weights", "frozen_base")},
    "class predictions": {"": ("stage1", "stage2", "sample"), "memory": (*_TRAINING, "weights", "frozen_base")},
    "stage 1": {"": ("stage2", "prior"), "memory": _STAGE_2},
    "stage 1, samples": {"": ("stage2", "prior"), "memory": (*_TRAINING, "weights"), "stage1": _BATCHES},
    "stage 2, samples": {"": ("stage1", "prior"), "memory": _TRAINING, "stage2": _BATCHES},
}


def that_matters(part: str, recipe: Recipe) -> str:
    """A part's name, and all of a recipe that may touch it."""
    options = recipe.model_dump(mode="json")
    for table, names in _REGARDLESS[part].items():
        values = options[table] if table else options
        for name in names:
            values.pop(name, None)
    return json.dumps([part, options])
