"""What a run takes, before it runs and without a card: memory by phase, time, disk; and what would make it fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from twostage.display import Display
from twostage.errors import UserError
from twostage.machine import compute_capability, has_fast_bfloat16, usual_device
from twostage.memory.ladder import Standing, changes_up_to, climb
from twostage.planning.cards import Card, known_cards
from twostage.planning.outlined import outline_base
from twostage.planning.phases import Known, Phase, Rehearsed, Work
from twostage.planning.rehearsal import rehearse
from twostage.planning.room import CARD, CPU, GIB, Machine, Room, card_needs, fits, read_size, room
from twostage.recipe import Recipe

__all__ = [
    "CARD",
    "CPU",
    "GIB",
    "Machine",
    "Card",
    "Phase",
    "Plan",
    "Planned",
    "card_here",
    "card_needs",
    "fits",
    "known_cards",
    "plan",
    "read_size",
]


@dataclass(frozen=True)
class Planned:
    """A rung of the ladder, simulated.

    Attributes:
        standing: the recipe there.
        rehearsed: what it takes; None above the first rung that fits.
        slower: training's operations, as a multiple of those of the recipe as it is.
        copied: bytes between card and host in a step, the mean over all.
    """

    standing: Standing
    rehearsed: Rehearsed | None = None
    slower: float = 0.0
    copied: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        rehearsed: the recipe as it is.
        room: beside the card.
        ladder: the rungs, the ground among them; empty where nobody asked.
        chosen: the first rung that fits; None where nobody asked, or none does.
    """

    rehearsed: Rehearsed
    room: Room
    ladder: list[Planned]
    chosen: Planned | None

    @property
    def changes(self) -> dict[str, Any]:
        """What the rungs up to the chosen one change: dotted options and their values."""
        return changes_up_to((rung.standing for rung in self.ladder), self.chosen.standing) if self.chosen else {}


def plan(recipe: Recipe, vram: int | None = None, display: Display | None = None, machine: Machine = CARD) -> Plan:
    """Predict what a run of the recipe takes.

    Args:
        recipe: its base is 'pocket', a folder, or known by name; see `outline_base`.
        vram: bytes of the card it is to fit; with it, the ladder is climbed.
        display: for progress.
        machine: what has these bytes, a card or a CPU.

    Raises:
        UserError: the base is not known.
    """
    base = outline_base(recipe.base)
    known = Known()
    rehearsed, ladder, chosen = rehearse(recipe, known), [], None
    standings = list(climb(recipe, machine.fast_bfloat16)) if vram else []
    with (display or Display()).progress("ladder", len(standings)) as update:
        for number, standing in enumerate(standings, 1):
            if chosen is None:
                found = rehearse(standing.recipe, known) if standing.changes else rehearsed
                work, steps = _training(found)
                slower = work.flops / _training(rehearsed)[0].flops
                ladder.append(Planned(standing, found, slower, work.copied // steps))
                chosen = ladder[-1] if vram and machine.needs(found)[1] * GIB <= vram else None
            else:
                ladder.append(Planned(standing))
            update(number)
    side = recipe.data.resolution or base.resolution
    return Plan(rehearsed, room(recipe, rehearsed, side), ladder, chosen)


def card_here() -> Machine:
    """A card of any size; where this machine has one, it is known whether that is fast at bfloat16."""
    device = torch.device(usual_device())
    return replace(CARD, fast_bfloat16=has_fast_bfloat16(compute_capability(device)))


def smallest(ladder: list[Planned], machine: Machine = CARD) -> int:
    """GiB of the smallest card, or memory, that some rung fits as a rule."""
    return min(math.ceil(machine.needs(rung.rehearsed)[1]) for rung in ladder if rung.rehearsed)


def check_fits(planned: Plan, vram: str, machine: Machine = CARD) -> None:
    """Refuse a card, or memory, that no rung fits.

    Raises:
        UserError: naming the smallest that would do.
    """
    if planned.ladder and planned.chosen is None:
        raise UserError(
            f"--vram {vram}: nothing on the ladder makes this fit; the smallest {machine.name} that would do has "
            f"{smallest(planned.ladder, machine)}GB"
        )


def _training(rehearsed: Rehearsed) -> tuple[Work, int]:
    """Of all steps together, and how many they are."""
    stages = [phase for phase in rehearsed.phases if phase.unit == "step"]
    return sum((phase.work.times(phase.count) for phase in stages), Work()), sum(phase.count for phase in stages)
