"""Charts, as plotly.js reads them: plain data and layout.

Colours are names of CSS variables, `var(--s0)`, which the page puts in for light and dark; fonts, grid and margins
are the page's too. A strategy has one colour and one marker in all charts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twostage.report import glossary
from twostage.report.formats import cost, interval, number
from twostage.report.pooling import BASE, COSTS, REAL, Estimate, Pool

MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon")
GLYPHS = "●■◆▲✚★▼⬢"  # MARKERS in text
COLOURS = 8  # --s0 ... --s7 in report.css

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: unique on the page.
        title: above it.
        words: what it shows, for those who cannot see it and for all others.
        figure: {"data", "layout"} of plotly.js.
        wide: takes a whole row.
    """

    name: str
    title: str
    words: str
    figure: dict[str, Any]
    wide: bool = False


def colour(pool: Pool, name: str) -> str:
    """The CSS variable of a strategy's colour, or of the base's or real photos'."""
    if name in (BASE, REAL):
        return "var(--base)" if name == BASE else "var(--real)"
    return f"var(--s{pool.strategies.index(name) % COLOURS})"


def marker(pool: Pool, name: str) -> str:
    """The marker of a strategy."""
    return "circle-open" if name in (BASE, REAL) else MARKERS[_shape(pool, name)]


def glyph(pool: Pool, name: str) -> str:
    """The marker of a strategy as a letter."""
    return {BASE: "○", REAL: "▬"}.get(name) or GLYPHS[_shape(pool, name)]


def _shape(pool: Pool, name: str) -> int:
    at = pool.strategies.index(name)
    # After eight strategies colours come again, with the next marker.
    return (at + at // COLOURS) % len(MARKERS)


def tradeoff(pool: Pool) -> Chart | None:
    """Identity against prompt fidelity, with intervals and the Pareto front."""
    across, up = pool.first(glossary.PROMPT_FIGURES), pool.first(glossary.IDENTITY_FIGURES)
    if across is None or up is None:
        return None
    points = {}
    for name in [*pool.strategies, BASE]:
        x, y = pool.estimate(name, across), pool.estimate(name, up)
        if x and y:
            points[name] = (x, y)
    if not any(name in points for name in pool.strategies):
        return None
    front = pool.front(across, up)
    data: list[Trace] = []
    if len(front) > 1:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [points[name][0].value for name in front],
                "y": [points[name][1].value for name in front],
                "line": {"color": "var(--faint)", "width": 1.5, "dash": "dot"},
                "hoverinfo": "skip",
            }
        )
    sides = _label_sides({name: (x.value, y.value) for name, (x, y) in points.items()})
    data += [_point(pool, name, x, y, sides[name]) for name, (x, y) in points.items()]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": _plain(pool.figures[across].title)}},
        "yaxis": {"title": {"text": _plain(pool.figures[up].title)}},
        "height": 440,
    }
    if real := pool.estimate(REAL, up):
        layout["shapes"] = [_level(real.value, "y", "var(--real)")]
        layout["annotations"] = [
            {
                "xref": "paper",
                "x": 1,
                "xanchor": "right",
                "y": real.value,
                "yanchor": "bottom",
                "text": "real photos",
                "showarrow": False,
            }
        ]
    words = "Up: more like the subject. Right: closer to the prompt. Whiskers: 95 % intervals."
    if len(front) > 1:
        words += f" Dotted: the Pareto front ({', '.join(front)}), where more of one costs some of the other."
    elif len(pool.strategies) > 1:
        words += f" {front[0]} is ahead on both."
    return Chart("tradeoff", "Identity against prompt fidelity", words, {"data": data, "layout": layout}, wide=True)


def _label_sides(points: dict[str, tuple[float, float]]) -> dict[str, str]:
    """Where the name of each point goes, so that names hide neither each other nor a point, where that can be had."""
    if not points:
        return {}
    (left, right), (bottom, top) = ((min(axis), max(axis)) for axis in zip(*points.values(), strict=True))
    # In about the pixels of a wide screen: 7 a letter, 18 a line.
    at = {
        name: (800 * (x - left) / ((right - left) or 1), 300 * (y - bottom) / ((top - bottom) or 1))
        for name, (x, y) in points.items()
    }
    taken = [(x - 7, x + 7, y - 7, y + 7) for x, y in at.values()]
    sides = {}
    for name, (x, y) in at.items():
        wide, tries = 7 * len(name) + 4, {}
        for side, across, up in (
            ("top right", x + 6, y + 6),
            ("bottom right", x + 6, y - 24),
            ("top left", x - 6 - wide, y + 6),
            ("bottom left", x - 6 - wide, y - 24),
        ):
            box = (across, across + wide, up, up + 18)
            tries[side] = (sum(_overlap(box, other) for other in taken), box)
        side = min(tries, key=lambda name: tries[name][0])
        taken.append(tries[side][1])
        sides[name] = side
    return sides


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Area that two boxes (left, right, bottom, top) share."""
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[2], b[2]))


def _point(pool: Pool, name: str, x: Estimate, y: Estimate, side: str) -> Trace:
    hover = (
        f"<b>%{{text}}</b><br>prompt {number(x.value)} ({interval(x)})<br>identity {number(y.value)} ({interval(y)})"
    )
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "text": [_plain(name)],
        "textposition": side,
        "x": [x.value],
        "y": [y.value],
        "error_x": _whisker(pool, name, [x]),
        "error_y": _whisker(pool, name, [y]),
        "marker": {"color": colour(pool, name), "symbol": marker(pool, name), "size": 11},
        "hovertemplate": hover + "<extra></extra>",
    }


def _whisker(pool: Pool, name: str, found: list[Estimate]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value if e.high is not None else 0 for e in found],
        "arrayminus": [e.value - e.low if e.low is not None else 0 for e in found],
        "color": colour(pool, name),
        "thickness": 1.2,
        "width": 0,
    }


def _level(value: float, axis: str, shade: str) -> dict[str, Any]:
    other = "x" if axis == "y" else "y"
    return {
        "type": "line",
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        f"{axis}0": value,
        f"{axis}1": value,
        "line": {"color": shade, "width": 1, "dash": "dash"},
    }


BARS = ("drift_class", "drift_unrelated", "diversity", "diversity_lpips", "dpres", "kid", "copying", "overfit_gap")


def bars(pool: Pool) -> list[Chart]:
    """Forgetting, variety and copying: one chart a figure, a bar for each strategy with its interval."""
    charts = []
    for name in BARS:
        if name not in pool.figures:
            continue
        shown = [*pool.strategies, REAL] if name in glossary.AGAINST_BASE else [*pool.strategies, BASE, REAL]
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
        rows = [(row, found) for row in pool.strategies if (found := pool.cost(row, name))]
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
    names = [_plain(name) for name, _ in rows]
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
        trace["error_x"] = {**_whisker(pool, BASE, [found for _, found in rows]), "color": "var(--ink)"}
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
            data = [trace for strategy in pool.strategies if (trace := _line(pool, strategy, kind, name))]
            if data:
                axis = "training steps, both stages" if kind == "step" else "strength: 0 is the base, 1 the result"
                layout = {"height": 300, "xaxis": {"title": {"text": axis}}, "yaxis": {}}
                words = "Mean over runs; no intervals are drawn."
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
        "name": strategy,
        "x": list(whole),
        "y": means,
        "line": {"color": colour(pool, strategy), "width": 2},
        "marker": {"symbol": marker(pool, strategy), "size": 8},
        "hovertemplate": f"<b>{_plain(strategy)}</b><br>%{{x}}: %{{y:.3f}}<extra></extra>",
    }


def _plain(text: str) -> str:
    """Text that plotly must not read as its own mark-up or placeholders."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")


def all_charts(pool: Pool) -> dict[str, list[Chart]]:
    """Charts by section."""
    first = tradeoff(pool)
    found = {"tradeoff": [first] if first else [], "bars": bars(pool), "curves": curves(pool), "costs": costs(pool)}
    return {section: charts for section, charts in found.items() if charts}
