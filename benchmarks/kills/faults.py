"""Training and exports on a disk that fails at random moments, gone on with on a sound one, and compared.

    python -m benchmarks.kills.faults FOLDER [--faults 60] [--seed 0] [--jobs two-stage dreambooth ...] [--json FILE]

One change of a file fails, below Python and safetensors (faults.c, which a C compiler makes a library of): the disk is
full or read-only from then on, or breaks once. The work must then end with one line for its user, or get on without;
nothing under a final name may be damaged, and what is gone on with must come out as unbroken work does, bit by bit.
Exit status 1 where one does not. Linux only.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.kills.__main__ import differences, let_live, prepare
from benchmarks.kills.child import Failed, Fault, run
from benchmarks.kills.jobs import Job, contents, faults
from twostage.display import Display, terminal_display
from twostage.machine import describe, versions

# The system's number, and whether it stays so.
KINDS = {
    "disk full": (errno.ENOSPC, True),
    "quota": (errno.EDQUOT, True),
    "read-only": (errno.EROFS, True),
    "no permission": (errno.EACCES, True),
    "broken once": (errno.EIO, False),
    "folder vanished": (errno.ENOENT, True),
}


@dataclass(frozen=True)
class Outcome:
    """Of one piece of work that met a fault.

    Attributes:
        job: its name.
        kind: of fault.
        where: it did what when it ended.
        told: to its user; empty where it got on without.
        wrong: what must not be; nothing, if all is well.
    """

    job: str
    kind: str
    where: str
    told: str
    wrong: list[str]


def meet(job: Job, sound: dict[str, str], changes: int, kind: str, number: int, place: Path) -> Outcome:
    """Do a job that meets a fault, go on on a sound disk, and compare.

    Args:
        job: to do.
        sound: contents of what it leaves undisturbed.
        changes: of files that it makes then.
        kind: of fault.
        number: of the change that fails.
        place: to work in.
    """
    place.mkdir(parents=True)
    error, stays = KINDS[kind]

    def work(display: Display) -> object:
        return job.work(place, display)

    wrong: list[str] = []
    where = told = ""
    try:
        ended = run(work, place, None, fault=Fault(number, error, stays))
        where, told = f"{ended.where} (change {number} of {changes})", ended.refused
        if "\n" in told:
            wrong.append(f"more than one line: {told}")
        if error in (errno.ENOSPC, errno.EDQUOT) and told and "bytes" not in told:
            wrong.append(f"says no bytes: {told}")
        wrong += faults(place)
        run(work, place, None)
        wrong += differences(sound, contents(place))
    except Failed as failure:
        wrong.append(str(failure))
    return Outcome(job.name, kind, where, told, wrong)


def main() -> int:
    """Read the command line, and break the disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to work in; made anew")
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default="pocket")
    parser.add_argument("--jobs", nargs="*", default=[], help="names to keep to; all when not given")
    parser.add_argument("--json", type=Path, help="where the figures go")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    library = folder / "faults.so"
    if os.environ.get("LD_PRELOAD") != str(library):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _compile(library)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "LD_PRELOAD": str(library)})
    torch.set_num_threads(1)
    display, began = terminal_display(), time.perf_counter()
    found = prepare(folder, asked.base, asked.jobs)
    outcomes = fault_all(found, folder, asked.faults, asked.seed, display)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in outcomes:
        print(f"{outcome.job:32} {outcome.kind:16} {outcome.where}: {outcome.told or 'got on without'}")
        for line in outcome.wrong:
            print(f"{outcome.job:32} WRONG: {line}")
    told = sum(bool(outcome.told) for outcome in outcomes)
    seconds = time.perf_counter() - began
    print(f"{len(outcomes)} faults: {told} told, {len(outcomes) - told} got over; {len(wrong)} wrong, {seconds:.0f} s")
    if asked.json:
        figures = {
            "command": f"python -m benchmarks.kills.faults FOLDER --faults {asked.faults} --seed {asked.seed}",
            "machine": describe(torch.device("cpu")),
            "versions": versions(),
            "faults": len(outcomes),
            "told": told,
            "wrong": len(wrong),
            "seconds": round(seconds),
            "kinds": dict(sorted(Counter(outcome.kind for outcome in outcomes).items())),
            "where": [f"{outcome.job}: {outcome.kind}, {outcome.where}" for outcome in outcomes],
        }
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def fault_all(found: Sequence[Job], folder: Path, count: int, seed: int, display: Display) -> list[Outcome]:
    """Have the jobs meet so many faults, of each kind in turn, at changes that are drawn."""
    draws, outcomes = random.Random(seed), []
    sound: dict[str, dict[str, str]] = {}
    changes: dict[str, int] = {}
    for number, job in enumerate(found):
        sound[job.name] = let_live(job, folder / f"sound-{number}").contents
        place = folder / f"counted-{number}"
        place.mkdir()
        changes[job.name] = run(lambda display, j=job, p=place: j.work(p, display), place, None, fault=Fault()).changes
    with display.progress("faults", count) as update:
        for number in range(count):
            job, kind = found[number % len(found)], list(KINDS)[(number + number // len(KINDS)) % len(KINDS)]
            at, place = draws.randint(1, changes[job.name]), folder / f"faulty-{number:03d}"
            outcomes.append(meet(job, sound[job.name], changes[job.name], kind, at, place))
            if not outcomes[-1].wrong:
                shutil.rmtree(place)
            update(number + 1, wrong=sum(bool(outcome.wrong) for outcome in outcomes))
    return outcomes


def _compile(library: Path) -> None:
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)


if __name__ == "__main__":
    sys.exit(main())
