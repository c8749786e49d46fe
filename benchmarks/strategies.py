"""Which strategy? All five on drawn subjects that no setting was tuned on, by `twostage compare` on the pocket model.

    python benchmarks/strategies.py runs/strategies --json benchmarks/results/strategies.json

Draws the photos (four to learn from, thirteen held out in contexts no run sees), calls the command as a user would, and
keeps its table and the time it took. Run again on the same folder it goes on, as the command does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from learned import TEST, UNSEEN, write_report

from twostage.demo import SEEN, take_photos
from twostage.pocket import world
from twostage.recipe_file import shipped_recipes


def draw_subjects(folder: Path, names: list[str]) -> list[str]:
    """Draw each subject's photos; for each, what --subject takes."""
    asked = []
    for name in names:
        subject = world.sample_subject(np.random.default_rng([TEST[name], 2024]), name)
        known_as = name.replace(" ", "-")
        photos, unseen = folder / "photos" / known_as, folder / "unseen" / known_as
        if not photos.is_dir():
            take_photos(unseen, subject, UNSEEN, TEST[name] + 1)
            take_photos(photos, subject, SEEN, TEST[name])
        asked.append(f"{photos}:{name}:{unseen}")
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--subjects", nargs="+", choices=TEST, default=["vase", "cat", "toy robot"])
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--recipes", nargs="+", default=shipped_recipes())
    arguments, more = parser.parse_known_args()
    command = [sys.executable, "-m", "cli", "compare", *arguments.recipes, "--seeds", arguments.seeds]
    for asked in draw_subjects(arguments.folder, arguments.subjects):
        command += ["--subject", asked]
    command += ["-o", str(arguments.folder / "comparison"), *more]
    print(shlex.join(["twostage", *command[3:]]), flush=True)
    began = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - began
    print(f"{seconds / 60:.1f} minutes")
    if arguments.json and not code:
        report = json.loads((arguments.folder / "comparison" / "report.json").read_text(encoding="utf-8"))
        kept = {name: report[name] for name in ("verdict", "strategies", "base", "real")}
        write_report(arguments.json, command=shlex.join(sys.argv), minutes=seconds / 60, **kept)
    sys.exit(code)


if __name__ == "__main__":
    main()
