from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # Before torch is imported: a process a core.

import benchmarks.trials as package
from benchmarks.trials.candidates import CANDIDATES, REDRAWN, TESTED
from benchmarks.trials.carrying_out import Job, Trials
from benchmarks.trials.subjects import TEST, TUNING
from benchmarks.trials.tables import claim, judge, pool, put, show
from benchmarks.trials.worker import carry_out_all


def main() -> None:
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phase", choices=("tuning", "test"), default="tuning")
    parser.add_argument("--only", nargs="+", help="candidates whose names begin so")
    parser.add_argument("--subjects", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--processes", type=int, help="side by side; as many as there are cores when not given")
    parser.add_argument("--table", type=Path, help="write what is there already into this JSON; train nothing")
    parser.add_argument("--called", help="what that table is called there; the phase when not given")
    arguments = parser.parse_args()
    individuals = TUNING if arguments.phase == "tuning" else TEST
    seeds = arguments.seeds or ((0,) if arguments.phase == "tuning" else (0, 1, 2))
    rounds = [CANDIDATES] if arguments.phase == "tuning" else [TESTED, REDRAWN]
    jobs = [
        Job(candidate.name, noun, individual, seed)
        for candidates in rounds
        for seed in seeds
        for candidate in candidates
        if not arguments.only or any(candidate.name.startswith(start) for start in arguments.only)
        for noun, individual in individuals.items()
        if not arguments.subjects or noun in arguments.subjects
    ]
    if not arguments.table:
        carry_out_all(arguments.folder, jobs, arguments.processes)
    trials = Trials(arguments.folder, [*CANDIDATES, *TESTED, *REDRAWN])
    records = [trials.record(job) for job in jobs]
    table = show(records, intervals=arguments.phase == "test")
    if arguments.table:
        put(arguments.table, arguments.called or arguments.phase, table)
    if arguments.phase == "test" and not arguments.only:
        judge(pool(records), [candidate.name for candidate in TESTED], claim)


if __name__ == "__main__":
    main()
