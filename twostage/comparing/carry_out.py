"""The loop over all jobs: what can begin goes to the engine, what has ended is noted, and what is seen is shown."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twostage.comparing.engine import Ended, Engine, Work
from twostage.comparing.jobs import Job, by_urgency
from twostage.comparing.place import Place
from twostage.comparing.watch import progress_of
from twostage.display import Display
from twostage.errors import UserError, shown, without_secrets
from twostage.method.interrupt import stop_on_signals

_POLL_SECONDS = 0.5


@dataclass
class Outcomes:
    """What came of jobs.

    Attributes:
        told: by those that succeeded.
        failed: why, of those that did not, and of those that waited for one of them.
    """

    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def over(self, name: str) -> bool:
        """Whether a job has ended, or never will begin."""
        return name in self.told or name in self.failed


def carry_out(
    jobs: Sequence[Job], engine: Engine, threads: int, place: Place, display: Display, label: str = "compare"
) -> Outcomes:
    """Do all jobs.

    Args:
        jobs: to do.
        engine: that does them.
        threads: of the CPU, for each.
        place: of the comparison; failures that nobody foresaw are written to its errors/.
        display: shows all of it as one.
        label: of the progress.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; what ran was asked to save itself.
    """
    outcomes, running = Outcomes(), dict[str, Job]()
    waiting = by_urgency(jobs)
    ended_cost, total, asked = 0.0, sum(job.cost for job in jobs), False
    with stop_on_signals() as stop, display.overview(label, total) as update:
        while waiting or running:
            if stop.asked and not asked:
                asked, waiting = True, []
                display.say("stopping: what trains saves itself at its next step")
                engine.stop()
            for job in _ready(waiting, outcomes, engine.free):
                engine.submit(Work(job.name, job.task, threads))
                running[job.name] = job
            for ended in engine.ended(_POLL_SECONDS):
                ended_cost += running.pop(ended.name).cost
                _note(ended, outcomes, place, display)
            waiting = [job for job in waiting if job.name not in running and not outcomes.over(job.name)]
            for job in [job for job in waiting if any(name in outcomes.failed for name in job.after)]:
                waiting.remove(job)
                ended_cost += job.cost
                because = next(name for name in job.after if name in outcomes.failed)
                outcomes.failed[job.name] = f"left out, since {because} failed"
            seen = {name: progress_of(job, place.path) for name, job in running.items()}
            under_way = sum(running[name].cost * share for name, (share, _) in seen.items())
            update(ended_cost + under_way, [f"{name}: {doing}" if doing else name for name, (_, doing) in seen.items()])
    if stop.asked:
        raise KeyboardInterrupt
    return outcomes


def _ready(waiting: Iterable[Job], outcomes: Outcomes, free: int) -> list[Job]:
    ready = [
        job
        for job in waiting
        if all(name in outcomes.told for name in job.after) and all(outcomes.over(name) for name in job.behind)
    ]
    return ready[:free]


def _note(ended: Ended, outcomes: Outcomes, place: Place, display: Display) -> None:
    error = ended.error
    if error is None:
        outcomes.told[ended.name] = ended.told or {}
        return
    if isinstance(error, UserError):
        reason = " ".join(str(error).split())
    else:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if not isinstance(error, KeyboardInterrupt):
            file = f"errors/{ended.name.replace('/', '_').replace(' ', '_')}.txt"
            place.write(file, without_secrets("".join(traceback.format_exception(error))))
            reason += f" (see {place.join(file)})"
    reason = shown(reason)
    outcomes.failed[ended.name] = reason
    if not isinstance(error, KeyboardInterrupt):
        display.say(f"failed: {ended.name}: {reason}")
