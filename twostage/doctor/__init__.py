"""The verb of `twostage doctor`: what works on this machine, tried, and what a report of a mistake needs.

Nothing here imports torch: one that is broken is what a report is about. What is tried is tried in other processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from twostage import cache
from twostage.display import Display, terminal_display
from twostage.doctor.facts import (
    Place,
    find_driver,
    find_machine,
    find_places,
    find_settings,
    find_unmet,
    find_versions,
    memory_limit,
    usable_cores,
)
from twostage.doctor.mistakes import Finding, Here, find_mistakes
from twostage.doctor.privacy import without_private
from twostage.doctor.trials import TRIALS, Trial
from twostage.doctor.trying import Tried, try_all

__all__ = ["Checkup", "Finding", "Place", "Tried", "examine"]


@dataclass(frozen=True)
class Checkup:
    """What is so on this machine. No string in it tells a secret, the user's name or where the home folder is.

    Attributes:
        versions: of Python and the libraries.
        machine: system, processor, memory, driver, for people.
        settings: environment variables that matter.
        places: folders that are written to.
        kept: in the twostage cache.
        tried: what came of each trial.
        findings: worst first.
    """

    versions: dict[str, str]
    machine: dict[str, str]
    settings: dict[str, str]
    places: list[Place]
    kept: list[cache.Kept]
    tried: list[Tried]
    findings: list[Finding]

    @property
    def trains(self) -> bool:
        """Whether anything can be trained here."""
        return not any(finding.level == "error" for finding in self.findings)


def examine(display: Display | None = None, trials: Sequence[Trial] = TRIALS) -> Checkup:
    """Look at this machine, and try on it what training uses.

    Args:
        display: where progress is shown; the terminal when not given.
        trials: to carry out.
    """
    driver, places, settings = find_driver(), find_places(), find_settings()
    tried = try_all(display or terminal_display(), trials)
    here = Here(
        tried=tried,
        places=places,
        settings=settings,
        unmet=find_unmet(),
        driver=driver,
        cores=usable_cores(),
        memory=psutil.virtual_memory().total,
        limit=memory_limit(),
    )
    machine = find_machine() | {"NVIDIA driver": driver or "none found"}
    found = Checkup(find_versions(), machine, settings, places, _kept(), tried, find_mistakes(here))
    clear: Checkup = without_private(found)
    return clear


def _kept() -> list[cache.Kept]:
    try:
        return cache.kept()
    except OSError:  # What cannot be read is told of as a place.
        return []
