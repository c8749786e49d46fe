"""What limits what the runs can say: choices that differ, photos, subjects and seeds that are few."""

from __future__ import annotations

from collections.abc import Callable

from twostage.report import glossary
from twostage.report.formats import listed
from twostage.report.pooling import Pool


def cautions(pool: Pool) -> list[str]:
    """Sentences, the weightiest first."""
    checks: tuple[Callable[[Pool], str], ...] = (
        _about_choices,
        _about_guidance,
        _about_references,
        _about_pairing,
        _about_subjects,
        _about_seeds,
        _about_encoders,
        _about_number,
    )
    return [text for check in checks if (text := check(pool))]


def _about_choices(pool: Pool) -> str:
    names = pool.unequal_choices()
    return (
        f"Not all runs were evaluated in the same way ({listed(names)} differ): there, no differences are given. "
        "Evaluate them again with the same options."
        if names
        else ""
    )


def _about_guidance(pool: Pool) -> str:
    """Strategies may be drawn each in its own way, but not one strategy in several."""
    ways: dict[str, list[str]] = {}
    for run in pool.runs:
        choices = run.document.choices
        share, away = choices.get("class_guidance") or 0, choices.get("away_from") or "own"
        told = [f"{share:.0%} of the guidance towards the class"] if share else []
        told += ["guided away from the base"] if away == "base" else []
        way = listed(told) or "guided by the prompt alone"
        if run.strategy not in ways.setdefault(way, []):
            ways[way].append(run.strategy)
    if len(ways) < 2:
        return ""
    names = [name for group in ways.values() for name in group]
    if mixed := sorted({name for name in names if names.count(name) > 1}):
        return (
            f"Not all runs of {listed(mixed)} were drawn with the same guidance; evaluate them again with the same "
            "--class-guidance and --away-from."
        )
    each = "; ".join(f"{listed(group)}: {way}" for way, group in ways.items())
    return (
        f"Strategies were drawn with the guidance of their recipes ({each}). To compare what was trained alone, "
        "evaluate with --class-guidance 0 --away-from own."
    )


def _about_references(pool: Pool) -> str:
    figure = pool.first(glossary.IDENTITY_FIGURES)
    if figure is None:
        return "How much the pictures look like the subject was not measured."
    if figure.endswith("_seen"):
        return (
            "No photo was held out: identity is measured against the photos trained on, which rewards copying them. "
            "Keep one from training with --held-out."
        )
    return ""


def _about_pairing(pool: Pool) -> str:
    cells = [set(pool.cells_of(name)) for name in pool.strategies]
    if all(one == cells[0] for one in cells):
        return ""
    return "Not every strategy was run on every subject and seed: differences are over those that both have."


def _about_subjects(pool: Pool) -> str:
    if len(pool.subjects) == 1:
        return f"One subject, {pool.subjects[0]}: intervals are over its prompts and say nothing of other subjects."
    if len(pool.subjects) < 10:
        return (
            f"{len(pool.subjects)} subjects: for others than these, intervals are rather too narrow; take ten or more."
        )
    return ""


def _about_seeds(pool: Pool) -> str:
    if len(pool.seeds) == 1:
        return "One training seed: how much training itself varies is not in the intervals."
    return ""


def _about_number(pool: Pool) -> str:
    if len(pool.strategies) == len(pool.charted):
        return ""
    return (
        f"Of {len(pool.strategies)} strategies, charts show the {len(pool.charted)} best on identity, and the JSON "
        "file has differences of every two of those; tables have all of them."
    )


def _about_encoders(pool: Pool) -> str:
    sources = {
        str(encoder.get("source"))
        for run in pool.runs
        for encoder in (run.document.choices.get("encoders") or {}).values()
        if isinstance(encoder, dict) and encoder
    }
    if "pocket" in sources:
        return (
            "Measured with the small bundled encoders: figures compare runs here, and cannot be held against a paper's."
        )
    return ""
