"""What all charts share: their form, a colour and a marker for each strategy, whiskers.

Colours are names of CSS variables, `var(--s0)`, which the page puts in for light and dark; fonts, grid and margins
are the page's too. A strategy has one colour and one marker in all charts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twostage.report.pooling import BASE, REAL, Estimate, Pool

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


def whisker(pool: Pool, name: str, found: list[Estimate]) -> dict[str, Any]:
    """Intervals as plotly's error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value if e.high is not None else 0 for e in found],
        "arrayminus": [e.value - e.low if e.low is not None else 0 for e in found],
        "color": colour(pool, name),
        "thickness": 1.2,
        "width": 0,
    }


def plain(text: str) -> str:
    """Text that plotly must not read as its own mark-up or placeholders."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
