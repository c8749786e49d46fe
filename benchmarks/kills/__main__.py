"""Kill training and exports at random moments, go on each time, and compare with what was never killed.

    python -m benchmarks.kills FOLDER [--kills 100] [--seed 0] [--jobs two-stage dreambooth ...] [--json FILE] [--ask]

Each kill is a SIGKILL. One in three comes from another process after a random time; the others come just before a
random file operation, in turn of each kind: checkpoints, their pruning, the caches, samples, results, exports ...
What goes on may be killed too. At the end, the whole run folder has to be that of unbroken work, bit by bit, but for
seconds; and after each kill, nothing under a final name may be damaged. Exit status 1 where one is not. With --ask it
is SIGTERM, at moments alone, and the seconds that pass until the process has ended are printed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.kills.child import Failed, Kill, Operation
from benchmarks.kills.child import run as run_child
from benchmarks.kills.jobs import Job, contents, faults, jobs
from twostage.demo import SEEN, take_photos
from twostage.display import Display, terminal_display
from twostage.families import load_base
from twostage.machine import describe, versions
from twostage.method.sampling import assemble
from twostage.pocket import world

# Of the kills, those at a moment; and chances that what goes on is killed too.
_MOMENTS, _AGAIN = 1 / 3, 0.3


@dataclass(frozen=True)
class Unbroken:
    """Work that was let live.

    Attributes:
        seconds: it took.
        operations: on files, in their order.
        contents: of what it left.
    """

    seconds: float
    operations: Sequence[Operation]
    contents: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """Of one piece of work: where its kills fell, and what was wrong in the end; nothing, if all is well."""

    job: str
    kills: list[str]
    kinds: list[str]
    wrong: list[str]
    answered: list[float] = field(default_factory=list)


def let_live(job: Job, place: Path) -> Unbroken:
    """Do a job once, undisturbed."""
    place.mkdir(parents=True)
    ended = run_child(lambda display: job.work(place, display), place, None)
    return Unbroken(ended.seconds, ended.operations, contents(place))


class Killer:
    """Draws the kills, seeded, so that they fall on every kind of operation in turn."""

    def __init__(self, seed: int, asks: bool = False) -> None:
        self._random, self.asks = random.Random(seed), asks
        self._hit: Counter[str] = Counter()

    def kill_of(self, unbroken: Unbroken) -> tuple[Kill, str]:
        """When to kill work like that, and what kind of kill it is."""
        if self.asks or self._random.random() < _MOMENTS:
            return Kill(seconds=self._random.uniform(0.02, 0.98) * unbroken.seconds, asks=self.asks), "a moment"
        kinds = sorted({operation.kind for operation in unbroken.operations})
        self._random.shuffle(kinds)
        kinds.sort(key=lambda kind: self._hit[kind])
        self._hit[kinds[0]] += 1
        numbers = [n for n, operation in enumerate(unbroken.operations, 1) if operation.kind == kinds[0]]
        return Kill(operation=self._random.choice(numbers)), kinds[0]

    def again(self) -> bool:
        """Whether to kill what goes on, too."""
        return self._random.random() < _AGAIN


def disturb(job: Job, unbroken: Unbroken, place: Path, killer: Killer, most: int) -> Outcome:
    """Do a job with up to `most` kills in it, go on after each, and compare."""
    place.mkdir(parents=True)
    outcome = Outcome(job.name, [], [], [])

    def work(display: Display) -> object:
        return job.work(place, display)

    try:
        kill, kind = killer.kill_of(unbroken)
        while (ended := run_child(work, place, kill, unbroken.seconds)).killed:
            outcome.kills.append(ended.where)
            outcome.kinds.append(kind)
            outcome.answered.append(ended.answered)
            outcome.wrong.extend(faults(place))
            if len(outcome.kills) == most or not killer.again():
                kill = None
                run_child(work, place, None, unbroken.seconds)
                break
            kill, kind = killer.kill_of(unbroken)
        found = differences(unbroken.contents, contents(place))
        # Who is asked to stop at the last step saves it: there is another checkpoint then, and else all is the same.
        outcome.wrong.extend(line for line in found if not (killer.asks and line.startswith("run/checkpoints/")))
    except Failed as failure:
        outcome.wrong.append(str(failure))
    return outcome


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Files that are not in both alike."""
    return [
        f"{name} {'differs' if name in one and name in other else 'is missing' if name in one else 'is left over'}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def main() -> int:
    """Read the command line, and kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to work in; made anew")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default="pocket")
    parser.add_argument("--jobs", nargs="*", default=[], help="names to keep to; all when not given")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--ask", action="store_true", help="send SIGTERM in place of SIGKILL")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(asked.folder, ignore_errors=True)
    folder = asked.folder.resolve()
    display, began = terminal_display(), time.perf_counter()
    found = prepare(folder, asked.base, asked.jobs)
    unbroken = {job.name: let_live(job, folder / f"unbroken-{n}") for n, job in enumerate(found)}
    display.say(f"{len(found)} jobs unbroken, {sum(one.seconds for one in unbroken.values()):.0f} s")
    outcomes = kill_all(found, unbroken, folder, asked.kills, Killer(asked.seed, asked.ask), display)
    kills = sum(len(outcome.kills) for outcome in outcomes)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in outcomes:
        for kind, where in zip(outcome.kinds, outcome.kills, strict=True):
            print(f"{outcome.job:32} {kind:24} {where}")
        for line in outcome.wrong:
            print(f"{outcome.job:32} WRONG: {line}")
    for kind, count in sorted(Counter(kind for outcome in outcomes for kind in outcome.kinds).items()):
        print(f"{count:4} at {kind}")
    seconds = time.perf_counter() - began
    answered = sorted(seconds for outcome in outcomes for seconds in outcome.answered)
    if asked.ask and answered:
        print(f"answered within {answered[-1]:.2f} s, half of them within {answered[len(answered) // 2]:.2f} s")
    print(f"{kills} kills in {len(outcomes)} pieces of work, {len(wrong)} of them wrong, {seconds:.0f} s")
    if asked.json:
        _write(asked.json, asked, outcomes, seconds)
    return 1 if wrong or kills < asked.kills else 0


def prepare(folder: Path, base: str, only: Sequence[str] = ()) -> list[Job]:
    """The jobs, with photos drawn and a run finished to export, in `folder`.

    The base is put together here once: what that imports, no process that is forked has to import again.
    """
    assemble(load_base(base))
    photos, held_out = folder / "photos", folder / "held-out"
    subject = world.sample_subject(np.random.default_rng([0, 2024]), "backpack")
    take_photos(photos, subject, SEEN[:3], 0)
    take_photos(held_out, subject, SEEN[3:], 1)
    first = jobs(base, photos, held_out, None)[0]
    place = folder / "finished"
    wants_export = not only or any(name.startswith("export") for name in only)
    if wants_export:
        let_live(first, place)
    found = jobs(base, photos, held_out, place / "run" if wants_export else None)
    return [job for job in found if not only or job.name in only]


def kill_all(
    found: Sequence[Job], unbroken: dict[str, Unbroken], folder: Path, kills: int, killer: Killer, display: Display
) -> list[Outcome]:
    """Work on the jobs in turn until so many kills have fallen."""
    outcomes: list[Outcome] = []
    fallen = 0
    with display.progress("kills", kills) as update:
        while fallen < kills and len(outcomes) < 3 * kills + 10:
            job, place = found[len(outcomes) % len(found)], folder / f"killed-{len(outcomes):03d}"
            outcomes.append(disturb(job, unbroken[job.name], place, killer, kills - fallen))
            fallen += len(outcomes[-1].kills)
            if not outcomes[-1].wrong:
                shutil.rmtree(place)
            update(fallen, wrong=sum(bool(outcome.wrong) for outcome in outcomes))
    return outcomes


def _write(path: Path, asked: argparse.Namespace, outcomes: Sequence[Outcome], seconds: float) -> None:
    figures = {
        "command": f"python -m benchmarks.kills FOLDER --kills {asked.kills} --seed {asked.seed}{' --ask' * asked.ask}",
        "base": asked.base,
        "machine": describe(torch.device("cpu")),
        "versions": versions(),
        "kills": sum(len(outcome.kills) for outcome in outcomes),
        "pieces_of_work": len(outcomes),
        "wrong": sum(bool(outcome.wrong) for outcome in outcomes),
        "seconds": round(seconds),
        "answered": [round(seconds, 3) for outcome in outcomes for seconds in outcome.answered] if asked.ask else [],
        "at": dict(sorted(Counter(kind for outcome in outcomes for kind in outcome.kinds).items())),
        "where": [f"{outcome.job}: {where}" for outcome in outcomes for where in outcome.kills],
    }
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
