"""Many photos, prompts and runs: what memory they take, and whether time grows in line with them.

    python -m benchmarks.load FOLDER [--photos 1000 --prompts 10000 --runs 500] [--json FILE]

Each case runs at a quarter, at half and at all of its count, in a process of its own on one thread, whose peak resident
memory and seconds are told; so is how they grow from half to all, where in line is 2. All is made up in FOLDER: photos
from 64x64 pixels to 12 megapixels (JPEG, PNG, some with captions and masks), a tiny random pipeline at 64x64 pixels in
2 denoising steps, copies of its one finished run.

    photos found      as training finds them
    photos checked    `twostage photos check`: find copies, draw the sheet
    photos trained    encoded for the pocket model with an empty cache, mirrored, and 2 steps of each stage
    prompts           evaluated, a picture each, of the result and of the untouched base
    report            of runs of 10 strategies on subjects and seeds; and of runs that are a strategy each
    comparison        planned and checked, nothing trained: 5 recipes x settings x seeds
    cache             `twostage cache list`, of 20 files a run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import many
from benchmarks.stopwatch import peak_resident

ROOT = Path(__file__).parent.parent
MIB = 2**20
Told = dict[str, Any]


def photos_found(folder: Path, count: int) -> Callable[[], Told]:
    from twostage.subject.photos import find_photos

    place = many.photos(folder, count)

    def case() -> Told:
        found = find_photos(place)
        assert len(found) == count
        return {
            "with captions": sum(p.caption is not None for p in found),
            "with masks": sum(bool(p.mask) for p in found),
        }

    return case


def photos_checked(folder: Path, count: int) -> Callable[[], Told]:
    from twostage.display import Display
    from twostage.photo_doctor import check_photos

    place = many.photos(folder, count)

    def case() -> Told:
        found = check_photos(place, folder / f"check-{count}", display=Display())
        copies = sum(finding.kind == "copy" for finding in found.findings)
        return {"findings": len(found.findings), "copies": copies, "sheet_bytes": found.sheet.stat().st_size}

    return case


def photos_trained(folder: Path, count: int) -> Callable[[], Told]:
    from twostage.display import Display
    from twostage.recipe_file import load_recipe
    from twostage.run import train

    overrides = {
        "data.photos": str(many.photos(folder, count)),
        "data.class_noun": "backpack",
        "data.flip": True,
        "stage1.steps": 2,
        "stage2.steps": 2,
        "sample.per_prompt": 0,
        "prior.preserve": False,
    }

    def case() -> Told:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            recipe = load_recipe("two-stage", overrides=overrides)
            run = train(recipe, Path(temporary) / "run", display=Display())
            phases = json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"]
            latents = list(Path(os.environ["TWOSTAGE_CACHE"]).glob("latents/*/*.safetensors"))
        return {
            "phases": phases,
            "latents_files": len(latents),
            "latents_bytes": sum(f.stat().st_size for f in latents),
        }

    return case


def prompts(folder: Path, count: int) -> Callable[[], Told]:
    from twostage.display import Display
    from twostage.evaluating import evaluate
    from twostage.recipe_evaluation import Evaluation

    options = Evaluation(
        suite=str(many.prompts(folder, count)),
        images_per_prompt=1,
        num_class_images=16,
        num_unrelated_images=16,
        num_inference_steps=2,
        encoders=("dino=pocket", "clip=pocket", "dinov2=none"),
    )
    run = many.tiny_run(folder, 16)

    def case() -> Told:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            record = evaluate(run, options, output=Path(temporary), display=Display())
            size = (Path(temporary) / "evaluation.json").stat().st_size
        assert len(record["figures"]["clip_t"]["values"]) == count
        return {"pictures": 2 * (count + 32), "evaluation_json_bytes": size}

    return case


def report(folder: Path, count: int, strategies: int = 10) -> Callable[[], Told]:
    from twostage.report import build

    place = many.runs(folder, count, strategies or count)

    def case() -> Told:
        page = build([place], place / "report.html")
        files = {end: page.with_suffix(end).stat().st_size for end in (".html", ".json", ".md", ".csv")}
        return {"bytes": files, "pictures": page.read_text(encoding="utf-8").count("data:image/webp")}

    return case


def report_alone(folder: Path, count: int) -> Callable[[], Told]:
    return report(folder, count, strategies=0)


def comparison(folder: Path, count: int) -> Callable[[], Told]:
    from twostage.comparing import Request
    from twostage.comparing.check import check, photos_of
    from twostage.comparing.jobs import plan_jobs
    from twostage.comparing.place import Place
    from twostage.comparing.plan import plan_cells, plan_variants
    from twostage.comparing.request import Asked, read_request
    from twostage.recipe_evaluation import Evaluation

    recipes = ["two-stage", "dreambooth", "textual-inversion", "two-stage-lora", "dreambooth-lora"]
    seeds = ",".join(map(str, range(count // len(recipes))))
    few = many.tiny_run(folder).parent / "few"
    asked = Asked(photos=few, class_noun="backpack", seeds=seeds)

    def case() -> Told:
        evaluation = Evaluation(encoders=("dino=pocket", "clip=pocket", "dinov2=none"))
        request: Request = read_request(asked, recipes, evaluation)
        cells = plan_cells(request, plan_variants(request))
        check(request, cells)
        photos_of(cells)
        jobs = plan_jobs(Place(str(folder / "nothing-there")), cells, evaluation)
        return {"cells": len(cells), "jobs": len(jobs)}

    return case


def cache(folder: Path, count: int) -> Callable[[], Told]:
    from twostage.cache import kept

    many.kept_files(20 * count)

    def case() -> Told:
        found = kept()
        return {"files": sum(kind.files for kind in found), "bytes": sum(kind.bytes for kind in found)}

    return case


# What is counted, and the case.
CASES: dict[str, tuple[str, Callable[[Path, int], Callable[[], Told]]]] = {
    "photos found": ("photos", photos_found),
    "photos checked": ("photos", photos_checked),
    "photos trained": ("photos", photos_trained),
    "prompts": ("prompts", prompts),
    "report": ("runs", report),
    "report, a strategy a run": ("runs", report_alone),
    "comparison": ("runs", comparison),
    "cache": ("runs", cache),
}


def one(case: str, folder: Path, count: int) -> Told:
    """A case in this process: seconds of the work alone, and the peak of all that the process has held."""
    torch.set_num_threads(1)
    work = CASES[case][1](folder, count)
    _forget_peak()
    began, processor = time.perf_counter(), time.process_time()
    told = work()
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return {"seconds": seconds, "processor_seconds": processor, "peak_resident_bytes": peak_resident(), **told}


def _forget_peak() -> None:
    """Making the material is no part of the case."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def in_a_process_of_its_own(case: str, folder: Path, count: int) -> Told:
    command = [sys.executable, "-m", "benchmarks.load", str(folder), "--one", case, str(count)]
    with tempfile.TemporaryDirectory(dir=folder) as cache_of_its_own:
        environment = os.environ | {"TWOSTAGE_CACHE": cache_of_its_own, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        load = os.getloadavg()[0]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case} of {count} failed:\n{done.stderr[-3000:]}")
    found: Told = json.loads(done.stdout.splitlines()[-1])
    return {"count": count, **found, "load_average_before": load}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, count in (("photos", 1000), ("prompts", 10_000), ("runs", 500)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--quick", action="store_true", help="leave the quarters out")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path, help="write the figures here; cases that it has already are kept")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    folder = given.folder.resolve()
    if given.one:
        print(json.dumps(one(given.one[0], folder, int(given.one[1]))))
        return
    facts = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.exists() else {"cases": {}}
    facts |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "versions": {name: version(name) for name in ("torch", "diffusers", "pillow", "numpy")},
        "how": "each count in a process of its own: seconds of the work, peak resident memory of the process. A load "
        "average of 1 or more before a count: other processes ran beside it, and its seconds are too many; the "
        "processor's seconds are its own",
    }
    print("| case | count | seconds | processor's | peak, MiB | |\n|---|---|---|---|---|---|")
    for case in given.cases:
        whole = getattr(given, CASES[case][0])
        rows = []
        for count in (whole // 4, whole // 2, whole)[given.quick :]:
            rows.append(in_a_process_of_its_own(case, folder, count))
            row, before = rows[-1], rows[-2] if len(rows) > 1 else None
            rest = {key: value for key, value in row.items() if key not in _TOLD}
            growth = f"; {row['processor_seconds'] / before['processor_seconds']:.2f} times" if before else ""
            times = f"{row['seconds']:.1f} | {row['processor_seconds']:.1f}{growth}"
            peak = f"{row['peak_resident_bytes'] / MIB:.0f}"
            print(f"| {case} | {count} {CASES[case][0]} | {times} | {peak} | {json.dumps(rest)} |", flush=True)
        grown = rows[-1]["peak_resident_bytes"] - rows[-2]["peak_resident_bytes"]
        facts["cases"][case] = {
            "command": f"nice -n 10 python -m benchmarks.load FOLDER --{CASES[case][0]} {whole} --cases '{case}'",
            "rows": rows,
            "seconds_all_by_half": rows[-1]["processor_seconds"] / rows[-2]["processor_seconds"],
            "bytes_more_for_each": grown / (rows[-1]["count"] - rows[-2]["count"]),
        }
        if given.json:
            given.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


_TOLD = ("count", "seconds", "processor_seconds", "peak_resident_bytes", "load_average_before")

if __name__ == "__main__":
    main()
