"""The chart of identity against prompt fidelity."""

from __future__ import annotations

from typing import Any

from twostage.report import glossary
from twostage.report.formats import interval, listed, number
from twostage.report.marks import Chart, Trace, colour, marker, plain, whisker
from twostage.report.pooling import BASE, REAL, Estimate, Pool


def tradeoff(pool: Pool) -> Chart | None:
    """Identity against prompt fidelity, with intervals and the Pareto front."""
    across, up = pool.first(glossary.PROMPT_FIGURES), pool.first(glossary.IDENTITY_FIGURES)
    if across is None or up is None:
        return None
    points = {}
    for name in [*pool.charted, BASE]:
        x, y = pool.estimate(name, across), pool.estimate(name, up)
        if x and y:
            points[name] = (x, y)
    if not any(name in points for name in pool.strategies):
        return None
    front = [name for name in pool.front(across, up) if name in points]
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
        "xaxis": {"title": {"text": plain(pool.figures[across].title)}},
        "yaxis": {"title": {"text": plain(pool.figures[up].title)}},
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
        words += f" Dotted: the Pareto front ({listed(front)}), where more of one costs some of the other."
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
        "name": plain(name),
        "text": [plain(name)],
        "textposition": side,
        "x": [x.value],
        "y": [y.value],
        "error_x": whisker(pool, name, [x]),
        "error_y": whisker(pool, name, [y]),
        "marker": {"color": colour(pool, name), "symbol": marker(pool, name), "size": 11},
        "hovertemplate": hover + "<extra></extra>",
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
