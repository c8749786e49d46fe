"""The loss of each family and that of diffusers' own training script for it, on the same tensors.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers ../diffusers
    pip install --target ../libraries datasets
    python -m benchmarks.family_losses ../diffusers runs/family-losses --libraries ../libraries \\
        --json benchmarks/results/family_losses.json

Each script runs as it is for one step, on a tiny pipeline of random weights, and `recorder` keeps what its denoiser was
given, the loss and the gradients. Stage 2 then makes a step of the script's latents, noise and noise levels: what its
denoiser is given (prompt states, sizes, class labels, noisy latents), the loss and the gradients stand beside the
script's. What ours makes otherwise by intent is handed over, and the table says what; `cases` says why. Exit status 1
where a loss is off by more than 1e-6 of it, gradients by more than 1e-5 of their length, or the denoiser was given
something else.

--python names an interpreter that has what the scripts need, if this one does not; --libraries a folder of packages
that it lacks. SDXL's and SD3's ask for the package datasets; torchvision is stood in for where there is none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.family_losses.bases import SIDES, write_base
from benchmarks.family_losses.cases import CASES, Case
from benchmarks.family_losses.comparison import TOLERANCE, Comparison, compare
from benchmarks.family_losses.ours import our_step
from benchmarks.family_losses.peer import Peer, draw_photos
from twostage.machine import versions

HEAD = ("base", "options", "handed over", "theirs", "ours", "difference", "relative", "given", "gradient")


def line(case: Case, found: Comparison) -> str:
    """A row of the table, and what is unlike below it."""
    losses = f"{found.theirs:.8f} | {found.ours:.8f} | {found.absolute:.1e} | {found.relative:.1e}"
    facts = f"{case.base} | {case.title} | {', '.join(case.handed)}"
    row = f"| {facts} | {losses} | {found.given:.1e} | {found.gradient:.1e} |"
    return "\n".join([row, *(f"  {case.name}: {words}" for words in found.unlike)])


def figures(case: Case, found: Comparison) -> dict[str, object]:
    """For the JSON."""
    facts = {"base": case.base, "script": case.script, "options": list(case.options), "handed": list(case.handed)}
    return facts | {
        "theirs": found.theirs,
        "ours": found.ours,
        "absolute": found.absolute,
        "relative": found.relative,
        "given": found.given,
        "gradient": found.gradient,
        "unlike": list(found.unlike),
        "agree": found.agree,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of huggingface/diffusers")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter with diffusers and accelerate")
    parser.add_argument("--libraries", type=Path, help="folder of packages that it lacks")
    parser.add_argument("--bases", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    draw_photos(asked.folder, max(SIDES.values()))
    peer = Peer(asked.checkout, asked.folder, asked.python, asked.libraries)
    ran: dict[str, str] = {}
    rows: list[dict[str, object]] = []
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for case in (case for case in CASES if case.base in asked.bases):
        base = write_base(asked.folder, case.base)
        theirs = peer.run(case, base, SIDES[case.base], asked.seed)
        ran |= theirs.versions
        found = compare(theirs.tensors, our_step(case, base, theirs.tensors))
        rows.append(figures(case, found))
        print(line(case, found), flush=True)
    unlike = sum(not row["agree"] for row in rows)
    print(f"{len(rows) - unlike} of {len(rows)} agree within {TOLERANCE:g}")
    if asked.json:
        scripts = sorted({case.script for case in CASES})
        hashes = {name: hashlib.sha256((asked.checkout / name).read_bytes()).hexdigest() for name in scripts}
        report = {
            "command": "python -m benchmarks.family_losses CHECKOUT FOLDER",
            "seed": asked.seed,
            "tolerance": TOLERANCE,
            "versions": versions(),
            "peer": hashes | ran,
            "cases": rows,
        }
        asked.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if unlike else 0)


if __name__ == "__main__":
    main()
