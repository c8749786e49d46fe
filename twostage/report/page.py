"""The HTML page: one file with its style, script, charts and pictures inside, written piece by piece."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from twostage import __version__
from twostage.report import charts, glossary, marks, tables
from twostage.report.formats import cost, number
from twostage.report.gallery import Gallery
from twostage.report.pooling import BASE, COSTS, MANY, REAL, RESAMPLES, Pool
from twostage.report.reading import MAY_DIFFER, Run, Skipped, comparable
from twostage.report.verdict import Verdict


def render(context: dict[str, Any]) -> Iterator[str]:
    """The page in pieces; pictures are read as they come, so that one at a time is in memory."""
    environment = Environment(
        loader=PackageLoader("twostage.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").generate(context)


def context(
    title: str,
    pool: Pool,
    verdict: Verdict,
    gallery: Gallery,
    skipped: Sequence[Skipped],
    notes: Sequence[str],
    command: str,
    beside: Path,
) -> dict[str, Any]:
    """What the templates show."""
    shown = charts.all_charts(pool)
    names = [*pool.strategies, BASE, REAL]
    headline = _headline_figures(pool)
    return {
        "title": title,
        "counted": tables.counted(pool),
        "date": date.today().isoformat(),
        "version": __version__,
        "verdict": verdict,
        "pool": pool,
        "gallery": gallery,
        "charts": shown,
        "chart_data": {chart.name: chart.figure for section in shown.values() for chart in section},
        "columns": tables.columns(pool),
        "groups": _groups(tables.columns(pool)),
        "lines": tables.lines(pool),
        "landmarks": tables.landmarks(pool),
        "marks": {name: (marks.colour(pool, name), marks.glyph(pool, name)) for name in names},
        "sorted_by": pool.first(glossary.IDENTITY_FIGURES),
        "resamples": RESAMPLES,
        "many": MANY,
        "prompts": list(
            dict.fromkeys(str(one) for run in pool.runs for one in run.document.choices.get("prompts") or ())
        ),
        "runs": [_run_row(run, headline, beside) for run in sorted(pool.runs, key=_place(pool))],
        "run_figures": [(pool.figures[name].title, glossary.entry(name).short) for name in headline],
        "choices": choices(pool),
        "lines_of_figures": [(info.title, glossary.entry(name).line, info) for name, info in pool.figures.items()],
        "left_out": tables.left_out(pool),
        "skipped": [(tables.shown_path(one.folder, beside), one.reason) for one in skipped],
        "notes": notes,
        "command": command,
        "css": Markup(_own("report.css")),
        "js": Markup(_own("report.js")),
        "plotly": Markup(_plotly()) if shown else "",
        "stored": (Markup(line) for line in gallery.stored()),
    }


def _place(pool: Pool) -> Callable[[Run], tuple[int, int, int]]:
    return lambda run: (pool.strategies.index(run.strategy), pool.subjects.index(run.subject), run.seed)


def _headline_figures(pool: Pool) -> list[str]:
    groups = (
        glossary.IDENTITY_FIGURES,
        glossary.PROMPT_FIGURES,
        glossary.CLASS_FIGURES,
        glossary.VARIETY_FIGURES,
        glossary.COPYING_FIGURES,
    )
    return [name for group in groups if (name := pool.first(group))]


def _groups(columns: Sequence[tables.Column]) -> list[tuple[str, int]]:
    """Groups of neighbouring columns and how many each spans."""
    found: list[tuple[str, int]] = []
    for column in columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return found


def _run_row(run: Run, figures: Sequence[str], beside: Path) -> dict[str, Any]:
    result = run.document.result
    measured = [run.document.figures.get(name) for name in figures]
    numbers = [(figure.value if figure else None, number(figure.value if figure else None)) for figure in measured]
    spent = [
        (value, number(None) if value is None else cost(name, value))
        for name in COSTS
        for value in [getattr(result, name)]
    ]
    return {
        "strategy": run.strategy,
        "subject": run.subject,
        "seed": run.seed,
        "steps": " + ".join(str(count) for count in result.steps.values() if count) or number(None),
        "total_steps": sum(result.steps.values()),
        "numbers": [*numbers, *spent],
        "folder": tables.shown_path(run.folder, beside),
    }


def choices(pool: Pool) -> list[tuple[str, list[str]]]:
    """Every choice that figures depend on, by name, with all the values that runs have."""
    found: dict[str, dict[str, None]] = {}

    def tell(name: str, value: Any) -> None:
        if value not in (None, "", (), [], {}):
            found.setdefault(name.replace("_", " "), {})[_told(value)] = None

    for run in pool.runs:
        result, made = run.document.result, comparable(run)
        tell("base", result.base)
        tell("training seed", run.seed)
        tell("trained on", result.device)
        for name, value in made.items():
            if name == "encoders" and isinstance(value, dict):
                for role, encoder in value.items():
                    tell(f"encoder {role}", encoder)
            elif name == "prompts":
                tell("prompts", f"{len(value)}")
            else:
                tell("evaluation seed" if name == "seed" else name, value)
        for name in MAY_DIFFER:
            tell(name, run.document.choices.get(name))
        tell("photos", f"{len(result.photos)} trained on, {len(result.held_out)} held out")
        for name, value in run.document.versions.items():
            tell(f"version of {name}", value)
    return [(name, list(values)) for name, values in found.items()]


def _told(value: Any) -> str:
    """A value in words; of a path on this machine its last part, as it says nothing elsewhere."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_told(part) for part in value)
    text = str(value)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return PurePath(text).name if PurePath(text).is_absolute() else text


def _own(name: str) -> str:
    return (resources.files("twostage.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js, compressed: 2 MB of the page in place of 4.8 MB. The page unpacks it after it is shown."""
    script = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(zlib.compress(script, 9)).decode("ascii")
