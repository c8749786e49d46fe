"""Guards the default recipe: a small version of docs/default-recipe.md's test, in under 20 minutes.

    python -m benchmarks.quality runs/quality

Trains `two-stage` as it is shipped, and DreamBooth with and without prior, each at its best setting, on six drawn
subjects of the pocket world. Exit code 1 where the order has changed: `two-stage` must show the subject better than
both, follow prompts about as well, let class and other things drift less, and take less time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # Before torch is imported: a process a core.

from benchmarks.trials.candidates import TESTED
from benchmarks.trials.carrying_out import Job, Trials
from benchmarks.trials.subjects import TEST
from benchmarks.trials.tables import judge, pool, show, standing
from benchmarks.trials.worker import carry_out_all

SUBJECTS = ("sneaker", "vase", "toy robot", "stuffed animal", "cat", "owl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", nargs="+", choices=TEST, default=SUBJECTS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    jobs = [Job(one.name, noun, TEST[noun], arguments.seed) for noun in arguments.subjects for one in TESTED]
    carry_out_all(arguments.folder, jobs)
    trials = Trials(arguments.folder, TESTED)
    records = [trials.record(job) for job in jobs]
    show(records)
    met = judge(pool(records), [candidate.name for candidate in TESTED], standing)
    print(f"{'The order stands' if met else 'THE ORDER HAS CHANGED'}; {(time.perf_counter() - began) / 60:.1f} minutes")
    sys.exit(not met)


if __name__ == "__main__":
    main()
