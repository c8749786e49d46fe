"""What was tried, as a picture: identity against drift, and the front of what nothing beats in both.

python -m benchmarks.trials.front benchmarks/results/default_recipe.json docs/default-recipe-front.png

Draws with plotly in Chromium, which has to be installed, with its driver.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from selenium import webdriver

SIZE = (1100, 620)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
# Start of a candidate's name -> whose it is; the first that fits.
KINDS = {
    "prior-": "DreamBooth, class images",
    "noprior-": "DreamBooth, no prior",
    "dreambooth-photos": "DreamBooth, the photos' prior",
    "dreambooth-no-prior": "DreamBooth, no prior",
    "dreambooth": "DreamBooth, class images",
    "s1-": "stage 1 alone",
    "lora-": "LoRA",
    "shipped-both-2.5-2.5": "two-stage, as shipped",
    "shipped-": "two-stage, drawn otherwise",
    "draw-": "two-stage, drawn otherwise",
    "s2-": "two-stage, other settings",
}
# With fewer photos it is another task.
OTHER = "few-"
COLOURS = {
    "DreamBooth, class images": "#d1495b",
    "DreamBooth, no prior": "#8d5a97",
    "DreamBooth, the photos' prior": "#f2a3ab",
    "stage 1 alone": "#8a8f98",
    "LoRA": "#30638e",
    "two-stage, drawn otherwise": "#edae49",
    "two-stage, other settings": "#6fb7c4",
    "two-stage, as shipped": "#00798c",  # On top.
}


def kind_of(name: str) -> str:
    return next(kind for start, kind in KINDS.items() if name.startswith(start))


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (drift, identity) that no other beats in both, by drift."""
    best: list[tuple[float, float]] = []
    for drift, identity in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or identity > best[-1][1]:
            best.append((drift, identity))
    return best


def figure(tried: dict[str, dict[str, Any]]) -> go.Figure:
    """One panel for the drift of the class, one for that of other things."""
    shown = go.Figure()
    for column, (drift, title) in enumerate(
        (("drift_class", "drift of the class"), ("drift_unrelated", "of other things"))
    ):
        axis = "" if column == 0 else "2"
        points = [(figures[drift][0], figures["dino_unseen"][0]) for figures in tried.values()]
        x, y = zip(*front(points), strict=True)
        shown.add_scatter(
            x=x, y=y, mode="lines", line={"color": "#222", "width": 1, "dash": "dot"}, name="front",
            showlegend=column == 0, xaxis=f"x{axis}", yaxis=f"y{axis}",
        )  # fmt: skip
        for kind, colour in COLOURS.items():
            own = [(name, figures) for name, figures in tried.items() if kind_of(name) == kind]
            shown.add_scatter(
                x=[figures[drift][0] for _, figures in own],
                y=[figures["dino_unseen"][0] for _, figures in own],
                mode="markers",
                marker={"color": colour, "size": 16 if "shipped" in kind else 9, "line": {"color": "#fff", "width": 1}},
                name=kind,
                showlegend=column == 0,
                xaxis=f"x{axis}",
                yaxis=f"y{axis}",
            )
        place = [0.0, 0.47] if column == 0 else [0.53, 1.0]
        shown.update_layout(
            {
                f"xaxis{axis}": {"domain": place, "title": f"{title} (less is better)", "range": [-0.04, 1.06]},
                f"yaxis{axis}": {"anchor": f"x{axis}", "range": [0, 0.82], "title": "identity" if column == 0 else ""},
            }
        )
    shown.update_layout(
        template="plotly_white", width=SIZE[0], height=SIZE[1], margin={"t": 20, "r": 20},
        legend={"orientation": "h", "y": -0.16}, font={"size": 15},
    )  # fmt: skip
    return shown


def photograph_page(page: Path, output: Path) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={page.parent / 'profile'}", f"--window-size={SIZE[0] + 40},{SIZE[1] + 240}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"), log_output=os.devnull)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get(page.as_uri())
        driver.find_element("css selector", ".plotly-graph-div").screenshot(str(output))
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    table = json.loads(arguments.results.read_text(encoding="utf-8"))["tuning"]
    whole = max(figures["runs"] for figures in table.values())  # Others were broken off, on some of the subjects.
    tried = {
        name: figures for name, figures in table.items() if figures["runs"] == whole and not name.startswith(OTHER)
    }
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "front.html"
        figure(tried).write_html(page, include_plotlyjs=True, config={"staticPlot": True})
        photograph_page(page, arguments.output.absolute())


if __name__ == "__main__":
    main()
