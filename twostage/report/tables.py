"""The report's tables: rows for the page, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twostage import __version__
from twostage.report import glossary
from twostage.report.formats import cost, interval, number, plural
from twostage.report.pooling import BASE, COSTS, REAL, Estimate, Pool
from twostage.report.reading import Run, Skipped
from twostage.report.verdict import Verdict

ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}", "neither": ""}


@dataclass(frozen=True)
class Column:
    """One column: a figure or a cost."""

    name: str
    title: str
    short: str
    group: str
    better: str
    arrow: str


@dataclass(frozen=True)
class Cell:
    """One cell: the value to sort by, as shown, its interval as shown, and how it stands: "best", "tied" or ""."""

    value: float | None
    text: str
    between: str
    standing: str = ""


@dataclass(frozen=True)
class Line:
    """One row."""

    name: str
    runs: int
    cells: Sequence[Cell]


def columns(pool: Pool) -> list[Column]:
    """Every figure, then every cost that some run knows."""
    found = []
    for name, info in pool.figures.items():
        known = glossary.entry(name)
        short = known.short if name in glossary.ENTRIES else info.title
        found.append(Column(name, info.title, short, known.group, info.better, ARROWS[info.better]))
    for name, title in COSTS.items():
        if any(pool.cost(strategy, name) for strategy in pool.strategies):
            found.append(Column(name, title, title, "Cost", "lower", ARROWS["lower"]))
    return found


def lines(pool: Pool) -> list[Line]:
    """A row for each strategy. Best is marked only where its lead over every other one can be told."""
    standings: dict[tuple[str, str], str] = {}
    for name in pool.figures:
        leader, tied = pool.leaders(name)
        if leader is None or len(pool.strategies) == 1:
            continue
        # Where nobody can be told from the leader, a mark on every row would say nothing.
        if len(tied) + 1 < sum(pool.estimate(strategy, name) is not None for strategy in pool.strategies):
            standings[leader, name] = "tied" if tied else "best"
            standings |= {(other, name): "tied" for other in tied}
    rows = []
    for strategy in pool.strategies:
        cells = [
            _cost_cell(pool, strategy, column.name)
            if column.name in COSTS
            else _cell(pool.estimate(strategy, column.name), standings.get((strategy, column.name), ""))
            for column in columns(pool)
        ]
        rows.append(Line(strategy, len(pool.cells_of(strategy)), cells))
    return rows


def landmarks(pool: Pool) -> list[Line]:
    """The rows of the untouched base and of real photos, where they are known."""
    found = []
    for row in (BASE, REAL):
        cells = [_cell(None if column.name in COSTS else pool.estimate(row, column.name)) for column in columns(pool)]
        if any(cell.value is not None for cell in cells):
            found.append(Line(row, 0, cells))
    return found


def _cell(found: Estimate | None, standing: str = "") -> Cell:
    return Cell(found.value, number(found.value), interval(found), standing) if found else Cell(None, number(None), "")


def _cost_cell(pool: Pool, strategy: str, name: str) -> Cell:
    found = pool.cost(strategy, name)
    return Cell(found.value, cost(name, found.value), "") if found else Cell(None, number(None), "")


# Files beside the page


def markdown(
    title: str, pool: Pool, verdict: Verdict, skipped: Sequence[Skipped], notes: Sequence[str], command: str
) -> str:
    """The verdict, the table, and what was left out."""
    shown = columns(pool)
    parts = [f"# {_md(title)}", "", _md(verdict.headline), ""]
    for answer in verdict.answers:
        parts.append(f"- **{answer.question}** ({_md(answer.title)}). " + " ".join(_md(line) for line in answer.lines))
    parts += [f"- {_md(line)}" for line in verdict.costs]
    if verdict.advice:
        parts += ["", "| if | take | because |", "|---|---|---|"]
        parts += [f"| {_md(one.wish)} | {_md(one.take)} | {_md(one.why)} |" for one in verdict.advice]
    parts += [
        "",
        "| | " + " | ".join(f"{_md(c.short)} {c.arrow}".strip() for c in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for line in [*lines(pool), *landmarks(pool)]:
        parts.append(f"| {_md(line.name)} | " + " | ".join(_md_cell(cell) for cell in line.cells) + " |")
    parts += [
        "",
        "Values with 95 % intervals. **Bold**: ahead of every other strategy by a difference that can be told.",
    ]
    limits = [*verdict.cautions, *notes, *(f"Skipped: {one.folder.name}: {one.reason}." for one in skipped)]
    if limits:
        parts += ["", *(f"- {_md(text)}" for text in limits)]
    if command:
        parts += ["", "To repeat it:", "", *(f"    {line}" for line in command.splitlines())]
    return "\n".join(parts) + "\n"


def _md(text: str) -> str:
    """Text in Markdown that stays text."""
    plain = re.sub(r"([\\|\[\]`])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return " ".join(plain.splitlines())


def _md_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.standing == "best" else cell.text
    return f"{text} ({cell.between})" if cell.between else text


FIELDS = (
    "strategy", "subject", "seed", "row", "figure", "title", "value", "low", "high", "better",
    "train_seconds", "peak_memory_bytes", "result_bytes", "folder",
)  # fmt: skip


def csv_text(pool: Pool, beside: Path) -> str:
    """One line a run and figure; `row` is result, base or real."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    for run in pool.runs:
        told = {name: getattr(run.document.result, name) for name in COSTS}
        for row, figures in (
            ("result", run.document.figures),
            ("base", run.document.base),
            ("real", run.document.real),
        ):
            for name in glossary.ordered(set(figures)):
                figure = figures[name]
                low, high = figure.interval or ("", "")
                writer.writerow(
                    {
                        "strategy": _no_formula(run.strategy),
                        "subject": _no_formula(run.subject),
                        "seed": run.seed,
                        "row": row,
                        "figure": _no_formula(name),
                        "title": _no_formula(figure.title),
                        "value": figure.value,
                        "low": low,
                        "high": high,
                        "better": figure.better,
                        "folder": _no_formula(shown_path(run.folder, beside)),
                    }
                    | (told if row == "result" else {})
                )
    return buffer.getvalue()


def _no_formula(text: str) -> str:
    """Text that a spreadsheet takes for no formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def shown_path(path: Path, beside: Path) -> str:
    """A path as the report tells it: below the report's folder in full, elsewhere its last part.

    A report is passed on; the names of the folders of whoever made it are not.
    """
    relative = os.path.relpath(path.resolve(), beside.resolve())
    return path.resolve().name if relative.startswith("..") else relative


def json_data(
    title: str,
    pool: Pool,
    verdict: Verdict,
    skipped: Sequence[Skipped],
    notes: Sequence[str],
    command: str,
    beside: Path,
) -> dict[str, Any]:
    """All that the page says, for programs."""
    return {
        "format": 1,
        "versions": {"twostage": __version__},
        "title": title,
        "command": command,
        "verdict": asdict(verdict),
        "figures": {name: {**asdict(info), "range": list(info.range)} for name, info in pool.figures.items()},
        "strategies": {
            name: {
                "runs": len(pool.cells_of(name)),
                "figures": _estimates(pool, name),
                "costs": {key: asdict(found) for key in COSTS if (found := pool.cost(name, key))},
            }
            for name in pool.strategies
        },
        "base": _estimates(pool, BASE),
        "real": _estimates(pool, REAL),
        "differences": [
            {"figure": figure, "first": first, "second": second, **asdict(found), "told": found.decided}
            for figure, first, second, found in pool.all_differences()
        ],
        "runs": [_run(run, beside) for run in pool.runs],
        "left_out": left_out(pool),
        "skipped": [{"folder": shown_path(one.folder, beside), "reason": one.reason} for one in skipped],
        "notes": list(notes),
    }


def _estimates(pool: Pool, name: str) -> dict[str, Any]:
    return {figure: asdict(found) for figure in pool.figures if (found := pool.estimate(name, figure))}


def _run(run: Run, beside: Path) -> dict[str, Any]:
    result = run.document.result.model_dump(mode="json", exclude={"photos", "held_out", "name"})
    return {
        **result,
        "strategy": run.strategy,
        "folder": shown_path(run.folder, beside),
        "photos": len(run.document.result.photos),
        "held_out": len(run.document.result.held_out),
        "figures": {name: figure.value for name, figure in run.document.figures.items()},
        "choices": run.document.choices,
    }


def left_out(pool: Pool) -> list[dict[str, Any]]:
    """Figures that runs lack, and why: figure, reason, and of which strategies (empty: of all)."""
    found: dict[tuple[str, str], set[str]] = {}
    for run in pool.runs:
        for name, reason in run.document.left_out.items():
            found.setdefault((name, reason), set()).add(run.strategy)
    everyone = set(pool.strategies)
    return [
        {"figure": name, "reason": reason, "strategies": [] if of == everyone else sorted(of)}
        for (name, reason), of in found.items()
    ]


def counted(pool: Pool) -> str:
    """ "30 runs: 5 strategies, 3 subjects, 2 seeds"."""
    seeds, subjects = len(pool.seeds), len(pool.subjects)
    return (
        f"{plural(len(pool.runs), 'run')}: {plural(len(pool.strategies), 'strategy', 'strategies')}, "
        f"{plural(subjects, 'subject')}, {plural(seeds, 'training seed')}"
    )
