"""What the records say together, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.evaluation.bootstrap import Difference, hierarchical, paired_difference

# By name: (subject, seed) -> values.
Pooled = dict[str, dict[tuple[str, int], list[float]]]
SHOWN = {
    "score": "score",
    "dino_unseen": "identity",
    "clip_t": "prompt",
    "context_read": "context read",
    "edit_read": "edit read",
    "class_read": "class read",
    "drift_class": "drift class",
    "drift_unrelated": "drift other",
    "dpres": "dPRES",
    "diversity": "diversity",
    "copying": "copying",
    "seconds": "s",
}


def pool(records: Sequence[Path]) -> dict[str, Pooled]:
    """For each candidate and step that was measured, its figures."""
    found: dict[str, Pooled] = {}
    for file in records:
        if not file.exists():
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        job = record["job"]
        for point in record["points"]:
            figures: dict[str, Any] = dict(point["figures"], seconds=[point["seconds"]])
            identity, prompt = (sum(figures[name]) / len(figures[name]) for name in ("dino_unseen", "clip_t"))
            figures["score"] = [max(identity, 0.0) * prompt]
            name = f"{job['candidate']} @{point['step']}"
            for figure, values in figures.items():
                cells = found.setdefault(name, {}).setdefault(figure, {})
                cells[job["class_noun"], job["seed"]] = values
    return found


def named(pooled: dict[str, Pooled], candidate: str) -> str:
    """The name of what a candidate was measured at last."""
    return [name for name in pooled if name.startswith(f"{candidate} @")][-1]


def show(records: Sequence[Path], intervals: bool = False) -> dict[str, dict[str, list[float] | int]]:
    """Print a table, with intervals if they are asked for: what it says, with them."""
    pooled = pool(records)
    print("| candidate | runs | " + " | ".join(SHOWN.values()) + " |")
    print("|---" * (len(SHOWN) + 2) + "|")
    estimates: dict[str, dict[str, list[float] | int]] = {}
    for name, figures in pooled.items():
        cells = []
        estimates[name] = {"runs": len(figures["score"])}
        for figure in SHOWN:
            estimate = hierarchical(figures[figure])
            estimates[name][figure] = [round(number, 4) for number in (estimate.value, estimate.low, estimate.high)]
            digits = 0 if figure == "seconds" else 2
            bounds = f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]" if intervals else ""
            cells.append(f"{estimate.value:.{digits}f}{bounds}")
        print(f"| {name} | {len(figures['score'])} | {' | '.join(cells)} |")
    return estimates


def put(file: Path, name: str, table: dict[str, Any]) -> None:
    """Write a table into a file of several, each candidate on a line, and leave the others as they are."""
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    told[name] = table
    parts = []
    for key, value in told.items():
        if isinstance(value, str):
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
            continue
        lines = [f"  {json.dumps(row)}: {json.dumps(figures)}" for row, figures in value.items()]
        parts.append(f" {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n }")
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def difference(pooled: dict[str, Pooled], ours: str, other: str, figure: str) -> Difference:
    """How much higher a figure of `ours` is than that of `other`, paired by individual, seed and prompt."""
    return paired_difference(pooled[ours][figure], pooled[other][figure])


@dataclass(frozen=True)
class Term:
    """One part of the claim: a figure of ours less that of another."""

    figure: str
    other: str
    says: str
    holds: Callable[[Difference], bool]


def claim(prior: str, no_prior: str) -> list[Term]:
    """The terms of docs/default-recipe.md, by the names of the two DreamBooths."""
    terms = []
    for other in (prior, no_prior):
        terms.append(Term("dino_unseen", other, "identity not below by more than 0.02", lambda d: d.low >= -0.02))
        terms.append(Term("clip_t", other, "prompt fidelity above", lambda d: d.value > 0))
    for figure in ("drift_class", "drift_unrelated"):
        terms.append(Term(figure, prior, f"{SHOWN[figure]} below", lambda d: d.value < 0))
    return terms


def standing(prior: str, no_prior: str) -> list[Term]:
    """What of the claim stands, with room for the noise of six subjects at one seed: what the guard holds to."""
    return [
        Term("dino_unseen", prior, "identity above by more than 0.1", lambda d: d.value > 0.1),
        Term("dino_unseen", no_prior, "identity above", lambda d: d.value > 0),
        *(
            Term("clip_t", other, "prompt fidelity not below by more than 0.05", lambda d: d.value > -0.05)
            for other in (prior, no_prior)
        ),
        *(
            Term(figure, other, f"{SHOWN[figure]} below by more than 0.1", lambda d: d.value < -0.1)
            for figure in ("drift_class", "drift_unrelated")
            for other in (prior, no_prior)
        ),
        Term("seconds", prior, "20 s and more shorter", lambda d: d.value < -20),
    ]


def judge(pooled: dict[str, Pooled], names: Sequence[str], terms: Callable[[str, str], list[Term]]) -> bool:
    """Print what `terms` says of ours beside DreamBooth with and without prior, so ordered; whether it holds."""
    ours, prior, no_prior = (named(pooled, name) for name in names)
    return show_claim(pooled, ours, terms(prior, no_prior))


def show_claim(pooled: dict[str, Pooled], ours: str, terms: Sequence[Term]) -> bool:
    """Print each term with the difference and its interval; whether all hold."""
    print("| beside | claim | difference | holds | told from chance |\n|---|---|---|---|---|")
    met = True
    for term in terms:
        apart = difference(pooled, ours, term.other, term.figure)
        holds = term.holds(apart)
        met &= holds
        told = "yes" if apart.low > 0 or apart.high < 0 else "no"
        found = f"{apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
        print(f"| {term.other} | {term.says} | {found} | {'yes' if holds else 'NO'} | {told} |")
    return met
