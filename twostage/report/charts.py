"""Charts, as plotly.js reads them: plain data and layout."""

from __future__ import annotations

from typing import Any

from twostage.report import glossary
from twostage.report.formats import cost, interval, number
from twostage.report.marks import Chart, Trace, colour, marker, plain, whisker
from twostage.report.pooling import BASE, COSTS, REAL, Estimate, Pool
from twostage.report.tradeoff import tradeoff

BARS = ("drift_class", "drift_unrelated", "diversity", "diversity_lpips", "dpres", "kid", "copying", "overfit_gap")


def bars(pool: Pool) -> list[Chart]:
    """Forgetting, variety and copying: one chart a figure, a bar for each strategy with its interval."""
    charts = []
    for name in BARS:
        if name not in pool.figures:
            continue
        shown = [*pool.charted, REAL] if name in glossary.AGAINST_BASE else [*pool.charted, BASE, REAL]
        rows = [(row, found) for row in shown if (found := pool.estimate(row, name))]
        info = pool.figures[name]
        better = {"higher": "Longer is better.", "lower": "Shorter is better.", "neither": ""}[info.better]
        words = f"{better} {glossary.entry(name).line}".strip()
        charts.append(Chart(name, info.title, words, _bar(pool, rows, [number(e.value) for _, e in rows])))
    return charts


def costs(pool: Pool) -> list[Chart]:
    """Seconds and bytes."""
    charts = []
    for name, title in COSTS.items():
        rows = [(row, found) for row in pool.charted if (found := pool.cost(row, name))]
        if rows:
            texts = [cost(name, found.value) for _, found in rows]
            charts.append(
                Chart(
                    name,
                    title,
                    "Mean over runs. Shorter is better.",
                    _bar(pool, rows, texts, whiskers=False, axis=False),
                )
            )
    return charts


def _bar(
    pool: Pool, rows: list[tuple[str, Estimate]], texts: list[str], whiskers: bool = True, axis: bool = True
) -> dict[str, Any]:
    rows, texts = rows[::-1], texts[::-1]  # plotly draws from the bottom up
    names = [plain(name) for name, _ in rows]
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "x": [found.value for _, found in rows],
        "marker": {"color": [colour(pool, name) for name, _ in rows]},
        "customdata": [
            f"{text} ({between})" if whiskers and (between := interval(e)) else text
            for text, (_, e) in zip(texts, rows, strict=True)
        ],
        "hovertemplate": "<b>%{y}</b><br>%{customdata}<extra></extra>",
        "width": 0.62,
    }
    if whiskers:
        trace["error_x"] = {**whisker(pool, BASE, [found for _, found in rows]), "color": "var(--ink)"}
    # Beyond the whisker, so that neither hides the other.
    ends = [
        max(found.value, found.high if whiskers and found.high is not None else found.value, 0) for _, found in rows
    ]
    label: Trace = {
        "type": "scatter",
        "mode": "text",
        "y": names,
        "x": ends,
        "text": [f" {text}" for text in texts],
        "textposition": "middle right",
        "hoverinfo": "skip",
        "cliponaxis": False,
    }
    lowest = min(0.0, *(found.low if whiskers and found.low is not None else found.value for _, found in rows))
    span = max(max(ends) - lowest, 1e-9)
    layout = {
        "height": 58 + 34 * len(rows),
        # Room on the right for the longest label.
        "xaxis": {
            "range": [
                lowest - 0.02 * span if lowest < 0 else 0,
                max(ends) + (0.08 + 0.036 * max(map(len, texts))) * span,
            ],
            "visible": axis,
        },
        "yaxis": {"showgrid": False},
    }
    return {"data": [trace, label], "layout": layout}


CURVE_WORDS = {
    "step": "Mean over runs, of the sample pictures drawn while training; no intervals are drawn.",
    "strength": "Mean over runs; no intervals are drawn.",
}
CURVE_TITLES = {"step": "over training steps", "strength": "over strength"}


def curves(pool: Pool) -> list[Chart]:
    """Identity, prompt fidelity, forgetting and copying over steps and over strength, where runs have such curves."""
    charts = []
    for kind, over in CURVE_TITLES.items():
        for group in (
            glossary.IDENTITY_FIGURES,
            glossary.PROMPT_FIGURES,
            glossary.CLASS_FIGURES,
            glossary.COPYING_FIGURES,
        ):
            name = pool.first(group)
            if name is None:
                continue
            data = [trace for strategy in pool.charted if (trace := _line(pool, strategy, kind, name))]
            if data:
                axis = "training steps, both stages" if kind == "step" else "strength: 0 is the base, 1 the result"
                layout = {"height": 300, "xaxis": {"title": {"text": axis}}, "yaxis": {}}
                words = CURVE_WORDS[kind]
                charts.append(
                    Chart(
                        f"{kind}-{name}", f"{pool.figures[name].title} {over}", words, {"data": data, "layout": layout}
                    )
                )
    return charts


def _line(pool: Pool, strategy: str, kind: str, figure: str) -> Trace | None:
    found: dict[float, list[float]] = {}
    runs = list(pool.cells_of(strategy).values())
    for run in runs:
        # Stage 2 counts on from the last step of stage 1.
        before = {2: run.document.result.steps.get("stage1", 0)} if kind == "step" else {}
        for point in run.document.curve.get(kind, ()):
            if figure in point.figures:
                at = point.at + before.get(point.stage or 0, 0)
                found.setdefault(at, []).append(point.figures[figure].value)
    # A point that only some runs have would bend the line by who is in it.
    whole = {at: values for at, values in sorted(found.items()) if len(values) == max(map(len, found.values()))}
    if not whole:
        return None
    means = [sum(values) / len(values) for values in whole.values()]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plain(strategy),
        "x": list(whole),
        "y": means,
        "line": {"color": colour(pool, strategy), "width": 2},
        "marker": {"symbol": marker(pool, strategy), "size": 8},
        "hovertemplate": f"<b>{plain(strategy)}</b><br>%{{x}}: %{{y:.3f}}<extra></extra>",
    }


def all_charts(pool: Pool) -> dict[str, list[Chart]]:
    """Charts by section."""
    first = tradeoff(pool)
    found = {"tradeoff": [first] if first else [], "bars": bars(pool), "curves": curves(pool), "costs": costs(pool)}
    return {section: charts for section, charts in found.items() if charts}
